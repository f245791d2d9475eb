"""How long it takes to remove near duplicates, and how many planted ones are found:
`python benchmarks/dedup.py [documents]`. One process.
"""

import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

from lmx.data.corpus.text import Text
from lmx.data.curate.dedup import Dedup
from lmx.data.curate.ngrams import hash_ngram_set, jaccard_index

WORDS = 200  # of a document, and this often a different one
VOCAB = 50_000
PLANTED = 0.05  # of all documents: worn copies of others
STEP = 0.1  # of likeness, from one line of the table to the next


def main(count: int) -> None:
    """Prints the seconds, and what was found at each likeness."""
    chance = random.Random(0)
    vocab = [f"w{n:x}" for n in range(VOCAB)]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "web.jsonl")
        pairs = written(page, count, vocab, chance)
        sieve = Dedup(sources={"web": Text(path=f"{page}")})
        begun = time.perf_counter()
        report = sieve.write(Path(folder, "out"))
        seconds = time.perf_counter() - begun
        lines = Path(folder, "out", "removed.jsonl").read_text().splitlines()
        removed = {json.loads(line)["name"]: json.loads(line) for line in lines}
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(f"{count:,} documents of {WORDS} words")
    print(f"{seconds:.0f} s, {count / seconds:,.0f} documents/s")
    print(f"{'alike':>12} {'planted':>8} {'removed':>8}")
    for low in [STEP * n for n in range(5, 10)]:
        here = [name for name, how in pairs.items() if low <= how < low + STEP + 1e-9]
        gone = sum(name in removed for name in here)
        print(f"{low:>6.1f}-{low + STEP:.1f} {len(here):>10,} {gone:>8,}")
    enough = [name for name, how in pairs.items() if how >= sieve.threshold]
    found = sum(name in removed for name in enough) / len(enough)
    wrong = [each for each in removed.values() if each["alike"] < sieve.threshold]
    print(f"recall of pairs at least {sieve.threshold} alike: {found:.4f}")
    print(f"removed though less alike: {len(wrong)}")
    assert report["sources"]["web"]["documents"] == count


def written(
    page: Path, count: int, vocab: list[str], chance: random.Random
) -> dict[str, float]:
    """Writes the documents. Returns how much each planted copy is like its original."""
    pairs: dict[str, float] = {}
    recent: list[list[str]] = []
    at = 0
    with page.open("w") as file:
        for _ in range(count):
            words = chance.choices(vocab, k=WORDS)
            if recent and chance.random() < PLANTED:
                old = chance.choice(recent)
                words = worn(chance, old, chance.uniform(0, 0.07), vocab)
                likeness = jaccard_index(
                    hash_ngram_set(" ".join(old), 5), hash_ngram_set(" ".join(words), 5)
                )
                pairs[f"text@{at}"] = likeness
            elif len(recent) < 20_000:
                recent.append(words)
            line = json.dumps({"text": " ".join(words)}) + "\n"
            file.write(line)
            at += len(line)
    return pairs


def worn(
    chance: random.Random, old: list[str], share: float, vocab: list[str]
) -> list[str]:
    """The words with that share of them changed."""
    return [chance.choice(vocab) if chance.random() < share else w for w in old]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
