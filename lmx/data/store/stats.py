"""What is in a token store: counts, lengths, shares, samples, and how it shuffles."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from lmx.data.stateless_random import hash_u64, permute, randint
from lmx.data.store.shard_plan import read_records
from lmx.data.store.store import Store, load_store_tokenizer, open_store, read_manifest

SHUFFLE, SAMPLE = 1, 7  # purposes: that of the orders of rows, and one of its own
LAGS = (1, 10, 100)  # rows
SAMPLE_CHARS = 300  # characters of a sample


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    """How to look at a store.

    Attributes:
        row: tokens of the rows that are shuffled, as they are for training.
        samples: how many documents are decoded.
        seed: of the samples and of the shuffle.
    """

    sequence_length: int = 1024
    samples: int = 3
    seed: int = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        """The numbers of a store, in an order that can be printed."""
        store, told = open_store(folder), read_manifest(folder)
        return {
            "store": f"{folder}",
            **{name: told[name] for name in ("documents", "tokens", "bytes")},
            "shards": len(told["shards"]),
            "bytes_per_token": told["bytes"] / store.size,
            "lengths": summarize_lengths(np.diff(store.starts)),
            "sources": summarize_sources(store, folder),
            "left_out": told["left_out"],
            "autocorrelation": self._measure_shuffle(store),
            "samples": list(self._draw_samples(store, folder)),
            "fingerprint": dict(store.fingerprint),
        }

    def _measure_shuffle(self, store: Store) -> dict[str, Any]:
        """How much the source of a row says of those that are read after it."""
        source = find_row_sources(store, self.sequence_length)
        place = np.arange(len(source))
        key = hash_u64(self.seed, SHUFFLE, np.zeros_like(place))  # of the first epoch
        order = permute(place, len(source), key)
        lags = [lag for lag in LAGS if lag < len(source)]
        return {
            "rows": len(source),
            "row": self.sequence_length,
            "chance": len(source) ** -0.5,
            "stored": {lag: compute_autocorrelation(source, lag) for lag in lags},
            "shuffled": {
                lag: compute_autocorrelation(source[order], lag) for lag in lags
            },
        }

    def _draw_samples(self, store: Store, folder: Path):
        """Documents drawn with replacement, each as its tokenizer reads it."""
        codec = load_store_tokenizer(folder)
        drawn = randint(store.documents, self.seed, SAMPLE, np.arange(self.samples))
        for number in drawn.tolist():
            tokens = store.read_document(number)
            (source,) = (
                name
                for name, ranges in store.sources.items()
                if any(number in one for one in ranges)
            )
            text = codec.decode(tokens[: 4 * SAMPLE_CHARS].tolist())[:SAMPLE_CHARS]
            yield {
                "document": number,
                "source": source,
                "tokens": len(tokens),
                "text": text,
            }


def summarize_lengths(found: Int64[np.ndarray, " _"]) -> dict[str, int | float]:
    """How long documents are, in tokens with begin and end."""
    middle, most, nearly = np.quantile(found, [0.5, 0.9, 0.99])
    return {
        "least": int(found.min()),
        "mean": float(found.mean()),
        "median": float(middle),
        "90%": float(most),
        "99%": float(nearly),
        "most": int(found.max()),
    }


def summarize_sources(store: Store, folder: Path) -> dict[str, dict[str, int | float]]:
    """What each source has, and its share of all tokens."""
    found: dict[str, dict[str, int | float]] = {}
    for record in read_records(folder):
        known = found.setdefault(
            record["source"], {"documents": 0, "tokens": 0, "bytes": 0}
        )
        for name in known:
            known[name] += record[name]
    for known in found.values():
        known["share"] = known["tokens"] / store.size
        known["bytes_per_token"] = known["bytes"] / max(1, known["tokens"])
    return found


def find_row_sources(store: Store, row: int) -> Int64[np.ndarray, " _"]:
    """The number of the source of each row's first token."""
    begins = np.arange(0, store.size, row)
    document = np.searchsorted(store.starts, begins, side="right") - 1
    found = np.empty(len(begins), np.int64)
    for number, ranges in enumerate(store.sources.values()):
        for one in ranges:
            found[(document >= one.start) & (document < one.stop)] = number
    return found


def compute_autocorrelation(source: Int64[np.ndarray, " _"], lag: int) -> float:
    """Of the sources of rows, `lag` rows apart: 1 where one tells the other, 0 where it
    says nothing.

    How much oftener both are of one source than two rows drawn at random would be. A
    store of a single source has none, and gives 0.
    """
    together = float((source[lag:] == source[:-lag]).mean())
    by_chance = float(((np.bincount(source) / len(source)) ** 2).sum())
    return (together - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0


def plot_lengths(folder: Path, target: Path) -> None:
    """A histogram of the documents' lengths, by source, as a PNG."""
    from matplotlib.figure import Figure

    store = open_store(folder)
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    found = np.diff(store.starts)
    edges = make_length_bins(found).tolist()
    parts = {
        name: np.concatenate([found[one.start : one.stop] for one in ranges])
        for name, ranges in store.sources.items()
        if ranges
    }
    axes.hist(list(parts.values()), bins=edges, stacked=True, label=list(parts))
    axes.set(
        xscale="log",
        xlabel="tokens of a document",
        ylabel="documents",
        title=folder.name,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, format="png")


def make_length_bins(found: Int64[np.ndarray, " _"]) -> Float64[np.ndarray, " _"]:
    """The edges of at most 60 bins that grow by one factor, each of a whole length."""
    low, high = max(1, int(found.min())), int(found.max()) + 1
    return np.unique(np.geomspace(low, high, 61).round()).astype(np.float64)


def format_stats(told: Mapping[str, Any]) -> str:
    """The numbers for a person."""
    lines = [
        f"{told['store']}: {told['documents']:,} documents, {told['tokens']:,} tokens"
        f" of {told['bytes'] / 1e6:,.1f} MB of text, {told['bytes_per_token']:.2f}"
        f" bytes per token, {told['shards']} shards",
        "tokens of a document: "
        + ", ".join(f"{name} {value:,.0f}" for name, value in told["lengths"].items()),
        *_format_sources(told["sources"]),
        *_format_rejected(told["left_out"]),
        *_format_shuffle(told["autocorrelation"]),
    ]
    for one in told["samples"]:
        lines.append(
            f"document {one['document']:,} of {one['source']}, {one['tokens']:,}"
            f" tokens: {one['text']!r}"
        )
    return "\n".join(lines)


def _format_sources(found: Mapping[str, Mapping[str, int | float]]) -> list[str]:
    width = max(map(len, ("source", *found)))
    head = f"{'source':{width}}   documents           tokens   share  bytes/token"
    return [head] + [
        f"{name:{width}}  {one['documents']:10,}  {one['tokens']:15,}"
        f"  {one['share']:6.1%}  {one['bytes_per_token']:11.2f}"
        for name, one in found.items()
    ]


def _format_rejected(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for source, left in found.items():
        for reason, count in left["filtered"].items():
            lines.append(f"left out of {source}: {count:,} {reason}")
        for reason, one in left["set_aside"].items():
            where = "; ".join(one["first"])
            lines.append(f"set aside of {source}: {one['count']:,} {reason}, {where}")
    return lines


def _format_shuffle(found: Mapping[str, Any]) -> list[str]:
    """Nothing, where there are too few rows to say anything."""
    if not found["stored"]:
        return []

    def told(values: Mapping[int, float]) -> str:
        return ", ".join(f"{value:.3f} at {lag}" for lag, value in values.items())

    return [
        f"autocorrelation of source, in rows of {found['row']} tokens:"
        f" {told(found['stored'])} as stored; {told(found['shuffled'])} shuffled"
        f" (chance is {found['chance']:.3f})"
    ]
