"""Speed and recall of near-duplicate removal: `python benchmarks/dedup.py [documents]`.

One process. A part of the documents are near duplicates of others, with known Jaccard
index.
"""

import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

from lmx.data.corpus.text import Text
from lmx.data.curate.dedup import Dedup, hash_ngram_set, jaccard_index

WORDS = 200  # per document
VOCAB = 50_000
DUPLICATES = 0.05  # fraction of documents that are near duplicates
STEP = 0.1  # of the Jaccard index, per line of the table


def main(count: int) -> None:
    """Prints the time, and the number removed by Jaccard index."""
    rng = random.Random(0)
    vocab = [f"w{n:x}" for n in range(VOCAB)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "web.jsonl")
        pairs = write_documents(path, count, vocab, rng)
        dedup = Dedup(sources={"web": Text(path=f"{path}")})
        start = time.perf_counter()
        report = dedup.write(Path(folder, "out"))
        seconds = time.perf_counter() - start
        lines = Path(folder, "out", "removed.jsonl").read_text().splitlines()
        removed = {json.loads(line)["name"]: json.loads(line) for line in lines}
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(f"{count:,} documents of {WORDS} words")
    print(f"{seconds:.0f} s, {count / seconds:,.0f} documents/s")
    print(f"{'Jaccard':>12} {'pairs':>8} {'removed':>8}")
    for low in [STEP * n for n in range(5, 10)]:
        names = [n for n, index in pairs.items() if low <= index < low + STEP + 1e-9]
        found = sum(name in removed for name in names)
        print(f"{low:>6.1f}-{low + STEP:.1f} {len(names):>10,} {found:>8,}")
    near = [name for name, index in pairs.items() if index >= dedup.threshold]
    recall = sum(name in removed for name in near) / len(near)
    wrong = [each for each in removed.values() if each["similarity"] < dedup.threshold]
    print(f"recall of pairs with index {dedup.threshold} or more: {recall:.4f}")
    print(f"false positives: {len(wrong)}")
    assert report["sources"]["web"]["documents"] == count


def write_documents(
    path: Path, count: int, vocab: list[str], rng: random.Random
) -> dict[str, float]:
    """Writes the documents. Returns the Jaccard index of each near duplicate."""
    pairs: dict[str, float] = {}
    recent: list[list[str]] = []
    at = 0
    with path.open("w") as file:
        for _ in range(count):
            words = rng.choices(vocab, k=WORDS)
            if recent and rng.random() < DUPLICATES:
                old = rng.choice(recent)
                words = replace_words(rng, old, rng.uniform(0, 0.07), vocab)
                index = jaccard_index(
                    hash_ngram_set(" ".join(old), 5), hash_ngram_set(" ".join(words), 5)
                )
                pairs[f"text@{at}"] = index
            elif len(recent) < 20_000:
                recent.append(words)
            line = json.dumps({"text": " ".join(words)}) + "\n"
            file.write(line)
            at += len(line)
    return pairs


def replace_words(
    rng: random.Random, old: list[str], fraction: float, vocab: list[str]
) -> list[str]:
    """Returns the words with that fraction of them replaced."""
    return [rng.choice(vocab) if rng.random() < fraction else w for w in old]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
