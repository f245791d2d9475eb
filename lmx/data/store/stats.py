"""Statistics of a token store: counts, lengths, sources, samples, and shuffling."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from lmx.data.stateless_random import hash_u64, permute, randint
from lmx.data.store.store import (
    Store,
    load_store_tokenizer,
    open_store,
    read_manifest,
)

SHUFFLE, SAMPLE = 1, 7  # streams of random numbers: that of shuffled rows, and one more
LAGS = (1, 10, 100)  # sequences
SAMPLE_CHARS = 300
SIZES = ("documents", "tokens", "bytes")


def compute_stats(
    folder: Path, *, sequence_length: int = 1024, samples: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Returns the statistics of a store, in the order in which they are printed.

    `sequence_length` is that of the shuffled sequences, in tokens; `samples` is the
    number of decoded documents; `seed` is of the samples and of the shuffle.
    """
    store, manifest = open_store(folder), read_manifest(folder)
    return {
        "store": f"{folder}",
        **{name: manifest[name] for name in SIZES},
        "shards": len(manifest["shards"]),
        "bytes_per_token": manifest["bytes"] / store.size,
        "lengths": summarize_lengths(np.diff(store.starts)),
        "sources": _summarize_sources(manifest),
        "excluded": manifest["excluded"],
        "autocorrelation": _measure_shuffle(store, sequence_length, seed),
        "samples": list(_draw_samples(store, folder, samples, seed)),
        "fingerprint": dict(store.fingerprint),
    }


def _summarize_sources(
    manifest: Mapping[str, Any],
) -> dict[str, dict[str, int | float]]:
    sources: dict[str, dict[str, int | float]] = {}
    for shard in manifest["shards"]:
        source = sources.setdefault(shard["source"], dict.fromkeys(SIZES, 0))
        for name in SIZES:
            source[name] += shard[name]
    for source in sources.values():
        source["share"] = source["tokens"] / manifest["tokens"]
        source["bytes_per_token"] = source["bytes"] / max(1, source["tokens"])
    return sources


def _measure_shuffle(store: Store, length: int, seed: int) -> dict[str, Any]:
    """Measures how well the source of a sequence predicts that of a later one."""
    source = find_row_sources(store, length)
    place = np.arange(len(source))
    key = hash_u64(seed, SHUFFLE, np.zeros_like(place))  # of the first epoch
    shuffled = source[permute(place, len(source), key)]
    lags = [lag for lag in LAGS if lag < len(source)]
    return {
        "sequences": len(source),
        "sequence_length": length,
        "chance": len(source) ** -0.5,
        "stored": {lag: compute_autocorrelation(source, lag) for lag in lags},
        "shuffled": {lag: compute_autocorrelation(shuffled, lag) for lag in lags},
    }


def _draw_samples(
    store: Store, folder: Path, samples: int, seed: int
) -> Iterator[dict[str, Any]]:
    tokenizer = load_store_tokenizer(folder)
    for number in randint(store.documents, seed, SAMPLE, np.arange(samples)).tolist():
        tokens, (source, _) = store.read_document(number), store.locate(number)
        text = tokenizer.decode(tokens[: 4 * SAMPLE_CHARS].tolist())[:SAMPLE_CHARS]
        about = {"document": number, "source": source, "tokens": len(tokens)}
        yield {**about, "text": text}


def summarize_lengths(lengths: Int64[np.ndarray, " _"]) -> dict[str, int | float]:
    """Returns the distribution of lengths in tokens, including BOS and EOS."""
    median, high, highest = np.quantile(lengths, [0.5, 0.9, 0.99]).tolist()
    return {
        "min": int(lengths.min()),
        "mean": float(lengths.mean()),
        "median": median,
        "90%": high,
        "99%": highest,
        "max": int(lengths.max()),
    }


def find_row_sources(store: Store, length: int) -> Int64[np.ndarray, " _"]:
    """Returns the index of the source of each sequence's first token."""
    begins = np.arange(0, store.size, length)
    document = np.searchsorted(store.starts, begins, side="right") - 1
    indexed = enumerate(store.sources.values())
    ranges = sorted((some.start, index) for index, each in indexed for some in each)
    starts, sources = np.array(ranges).T
    return sources[np.searchsorted(starts, document, side="right") - 1]


def compute_autocorrelation(source: Int64[np.ndarray, " _"], lag: int) -> float:
    """Autocorrelation of the sources of sequences: 1 if predictable, 0 if independent.

    It is the excess probability that two sequences at that distance have one source,
    over two random ones. It is 0 for a single source.
    """
    equal = float((source[lag:] == source[:-lag]).mean())
    by_chance = float(((np.bincount(source) / len(source)) ** 2).sum())
    return (equal - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0


def plot_lengths(folder: Path, target: Path) -> None:
    """Writes a histogram of the lengths of documents, by source, as a PNG."""
    from matplotlib.figure import Figure

    store = open_store(folder)
    lengths = np.diff(store.starts)
    parts = {
        name: np.concatenate([lengths[some.start : some.stop] for some in ranges])
        for name, ranges in store.sources.items()
        if ranges
    }
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    edges = make_length_bins(lengths).tolist()
    axes.hist(list(parts.values()), bins=edges, stacked=True, label=list(parts))
    axes.set(xscale="log", xlabel="tokens per document", ylabel="documents")
    axes.set_title(folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, format="png")


def make_length_bins(lengths: Int64[np.ndarray, " _"]) -> Float64[np.ndarray, " _"]:
    """Returns the edges of at most 60 logarithmic bins, at whole lengths."""
    low, high = max(1, int(lengths.min())), int(lengths.max()) + 1
    return np.unique(np.geomspace(low, high, 61).round()).astype(np.float64)


def format_stats(stats: Mapping[str, Any]) -> str:
    """Formats the statistics as text."""
    width = max(map(len, ("source", *stats["sources"])))
    lengths = (f"{name} {value:,.0f}" for name, value in stats["lengths"].items())
    shuffle = stats["autocorrelation"]
    stored, shuffled = (
        ", ".join(f"{value:.3f} at {lag}" for lag, value in shuffle[name].items())
        for name in ("stored", "shuffled")
    )
    lines = [
        f"{stats['store']}: {stats['documents']:,} documents,"
        f" {stats['tokens']:,} tokens of {stats['bytes'] / 1e6:,.1f} MB of text,"
        f" {stats['bytes_per_token']:.2f} bytes per token, {stats['shards']} shards",
        f"tokens per document: {', '.join(lengths)}",
        f"{'source':{width}}   documents           tokens   share  bytes/token",
        *(
            f"{name:{width}}  {source['documents']:10,}  {source['tokens']:15,}"
            f"  {source['share']:6.1%}  {source['bytes_per_token']:11.2f}"
            for name, source in stats["sources"].items()
        ),
        *format_excluded(stats["excluded"]),
        *(
            [
                f"autocorrelation of source, in sequences of"
                f" {shuffle['sequence_length']} tokens: {stored} as stored; {shuffled}"
                f" shuffled (chance is {shuffle['chance']:.3f})"
            ]
            if stored  # not if there are too few sequences
            else []
        ),
        *(
            f"document {sample['document']:,} of {sample['source']},"
            f" {sample['tokens']:,} tokens: {sample['text']!r}"
            for sample in stats["samples"]
        ),
    ]
    return "\n".join(lines)


def format_excluded(excluded: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line per reason for which documents of a source are not in the store."""
    for source, reasons in excluded.items():
        for reason, count in reasons["filtered"].items():
            yield f"filtered from {source}: {count:,} {reason}"
        for reason, entry in reasons["rejected"].items():
            where = "; ".join(entry["locations"])
            yield f"rejected from {source}: {entry['count']:,} {reason}, first {where}"
