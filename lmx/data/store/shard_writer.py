"""Writes the shards of a token store, and commits them all at once."""

import array
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.registry import require
from lmx.core.files import write_atomic
from lmx.data.corpus.corpus import Document
from lmx.data.curate.filter import apply_filters
from lmx.data.store.shard_plan import BuildJob, ShardSpec
from lmx.data.store.store import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SHARDS_FILE,
    STARTS_FILE,
    format_shard_name,
    read_manifest,
    read_records,
    write_checksummed,
)
from lmx.data.tokenizer.base import Tokenizer

MAX_LOCATIONS = 5  # of rejected documents that are recorded, per reason
ENCODE_CHARS = 2**20  # characters that are encoded at a time
REPORT_SECONDS = 0.5  # between reports of progress
Record = Mapping[str, Any]
Summary = dict[str, dict[str, Any]]  # by source


@dataclass
class ShardCounts:
    """Counts of the documents of a shard: stored, removed by filters, and rejected."""

    shard: int
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: bool = False


def write_shard(
    job: BuildJob,
    spec: ShardSpec,
    on_progress: Callable[[ShardCounts], None] = lambda _: None,
) -> ShardCounts:
    """Writes the tokens, the lengths of documents and the record of a shard.

    A file appears once it is complete, and the record is written last.
    """
    counts, lengths = ShardCounts(spec.number), array.array("q")

    def encode() -> Iterator[bytes]:
        reported = time.monotonic()
        for document in _read_documents(job, spec, counts):
            before = counts.tokens
            for tokens in encode_document(job.tokenizer, document.text):
                counts.tokens += len(tokens)
                yield tokens.astype(job.dtype).tobytes()
            lengths.append(counts.tokens - before)
            counts.documents += 1
            counts.bytes += len(document.text.encode())
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                on_progress(counts)

    checksum = write_checksummed(job.folder / format_shard_name(spec.number), encode())
    data = np.array(lengths, "<i8").tobytes()
    write_atomic(job.get_path(spec.number, "lengths"), data)
    counts.done = True
    record = {
        **{"source": spec.source, **vars(counts), "checksum": checksum},
        "spans": [span[:-1] for span in spec.spans],
        "resume": {"recipe": job.describe(), "spans": spec.spans},
    }
    write_atomic(job.get_path(spec.number, "json"), json.dumps(record).encode())
    on_progress(counts)
    return counts


def _read_documents(
    job: BuildJob, spec: ShardSpec, counts: ShardCounts
) -> Iterator[Document]:
    """Yields the documents of a shard that are stored, and counts the others."""
    for span in spec.spans:
        for item in job.sources[spec.source].read_span(span, job.split):
            if isinstance(item, Document):
                result, _ = apply_filters(job.filters, item)
                if isinstance(result, Document):
                    yield result
                else:
                    counts.filtered[result] += 1
            elif item.kind == "invalid" and not job.max_invalid_fraction:
                raise item.to_error()
            else:  # what differs between similar entries is in brackets
                reason = re.sub(r" \(.*\)", "", item.reason)
                locations = [f"{span.file}: {item.location}"]
                add_rejected(counts.rejected, reason, item.kind, 1, locations)


def add_rejected(
    rejected: dict[str, dict[str, Any]],
    reason: str,
    kind: str,
    count: int,
    locations: list[str],
) -> None:
    """Adds rejected documents to the counts by reason, with the first locations."""
    entry = rejected.setdefault(reason, {"kind": kind, "count": 0, "locations": []})
    entry["count"] += count
    entry["locations"] = [*entry["locations"], *locations][:MAX_LOCATIONS]


def encode_document(tokenizer: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """Yields the tokens of a document, between BOS and EOS if the tokenizer has them.

    A long text is encoded in parts: tokenizers take more time and memory per character
    for longer texts. A tokenizer that adds a leading space encodes all at once.
    """
    if tokenizer.bos is not None:
        yield np.array([tokenizer.bos])
    at_once = tokenizer.strip_leading_space
    begin = 0
    while len(text) - begin > ENCODE_CHARS and not at_once:
        end = begin + ENCODE_CHARS
        found = max(text.rfind("\n", begin, end), begin) or text.rfind(" ", begin, end)
        end = found + 1 if found > begin else end
        yield tokenizer.encode(text[begin:end])
        begin = end
    yield tokenizer.encode(text[begin:])
    if tokenizer.eos is not None:
        yield np.array([tokenizer.eos])


def commit(job: BuildJob, specs: Sequence[ShardSpec]) -> None:
    """Writes the starts of documents, the records of shards, and the manifest.

    The files of an existing store only grow, so that it can be read at any moment.
    """
    exists = (job.folder / MANIFEST_FILE).is_file()
    old = read_records(job.folder) if exists else []
    old_recipe = read_manifest(job.folder)["recipe"] if exists else {}
    paths = [job.get_path(spec.number, "json") for spec in specs]
    new = [json.loads(path.read_text()) for path in paths]
    for record in new:
        record.pop("resume", None)
    records = [*old, *new]
    excluded = _summarize(records)
    for name, source in excluded.items():
        counts = {why: entry["count"] for why, entry in source["rejected"].items()}
        counts |= source["filtered"]
        reasons = ", ".join(f"{count:,} {why}" for why, count in counts.items())
        require(
            source["documents"],
            f"source {name!r} has no documents in the {job.split} split:"
            f" {reasons or 'it is empty'}.",
        )
    _check_limits(job, new)
    job.tokenizer.save(job.folder)
    lines = ((json.dumps(record) + "\n").encode() for record in records)
    sizes = ("documents", "tokens", "bytes")
    manifest = {
        "version": FORMAT_VERSION,
        "dtype": job.dtype,
        **{name: sum(record[name] for record in records) for name in sizes},
        "tokenizer": job.tokenizer.digest,
        "recipe": {**old_recipe, **job.describe()},
        "records": write_checksummed(job.folder / SHARDS_FILE, lines),
        "starts": _write_starts(job, sum(r["documents"] for r in old), specs),
        "excluded": excluded,
        "shards": [
            {
                **{name: record[name] for name in ("source", *sizes)},
                "sha256": record["checksum"]["sha256"],
            }
            for record in records
        ],
    }
    _write_manifest(job.folder, manifest)


def _write_starts(
    job: BuildJob, documents: int, specs: Iterable[ShardSpec]
) -> dict[str, Any]:
    """Writes where documents begin, after those in the store. Returns the checksum."""
    path = job.folder / STARTS_FILE

    def read() -> Iterator[bytes]:
        known = np.fromfile(path, "<i8", documents + 1) if documents else np.zeros(1)
        yield known.astype("<i8").tobytes()
        end = int(known[-1])
        for spec in specs:
            lengths = np.fromfile(job.get_path(spec.number, "lengths"), "<i8")
            yield (end + lengths.cumsum()).astype("<i8").tobytes()
            end += int(lengths.sum())

    return write_checksummed(path, read())


def _check_limits(job: BuildJob, records: Iterable[Record]) -> None:
    [counts] = _summarize({**record, "source": ""} for record in records).values()
    sizes = [entry["count"] for entry in counts["rejected"].values()]
    total = counts["documents"] + counts["filtered"].total() + sum(sizes)
    for kind in ("invalid", "empty"):
        entries = {r: e for r, e in counts["rejected"].items() if e["kind"] == kind}
        count = sum(entry["count"] for entry in entries.values())
        limit = getattr(job, f"max_{kind}_fraction")
        locations = "".join(
            f"\n  {entry['count']:,} {reason}: {'; '.join(entry['locations'])}"
            for reason, entry in entries.items()
        )
        require(
            count <= limit * total,
            f"{count:,} of {total:,} documents are {kind}, more than"
            f" BuildTokenStore.max_{kind}_fraction = {limit} allows: repair them, or"
            f" raise the limit (the shards in {job.folder} are kept).{locations}",
        )


def _summarize(records: Iterable[Record]) -> Summary:
    """Counts the documents of each source: stored, filtered and rejected by reason."""
    sources: Summary = {}
    for record in records:
        new = {"documents": 0, "filtered": Counter(), "rejected": {}}
        source = sources.setdefault(record["source"], new)
        source["documents"] += record["documents"]
        source["filtered"].update(record["filtered"])
        for reason, entry in record["rejected"].items():
            add_rejected(source["rejected"], reason, **entry)
    return sources


def _write_manifest(folder: Path, manifest: Record) -> None:
    """Writes the manifest once the names of the other files are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
        write_atomic(folder / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
