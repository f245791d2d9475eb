"""Commits the shards of a build: makes them part of the store, all at once."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.registry import ConfigError
from lmx.core.files import write_atomic
from lmx.data.store.checksum import write_checksummed
from lmx.data.store.shard_plan import BuildJob, ShardSpec
from lmx.data.store.shard_writer import add_rejected
from lmx.data.store.store import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SHARDS_FILE,
    STARTS_FILE,
    read_manifest,
    read_records,
)

Record = Mapping[str, Any]


def commit(job: BuildJob, specs: Sequence[ShardSpec]) -> None:
    """Writes the starts of documents, the records of shards, and the manifest.

    The files of an existing store only grow, so that it can be read at any moment.
    """
    exists = (job.folder / MANIFEST_FILE).is_file()
    old = read_records(job.folder) if exists else []
    old_recipe = read_manifest(job.folder)["recipe"] if exists else {}
    new = [_read_record(job.get_path(spec.number, "json")) for spec in specs]
    records = [*old, *new]
    by_source: dict[str, list[Record]] = {}
    for record in records:
        by_source.setdefault(record["source"], []).append(record)
    _check_limits(job, new)
    excluded = {name: _summarize(by_source[name]) for name in sorted(by_source)}
    for name, some in by_source.items():
        if not any(record["documents"] for record in some):
            counts = Counter(excluded[name]["filtered"])
            for reason, entry in excluded[name]["rejected"].items():
                counts[reason] = entry["count"]
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts.items())
            raise ConfigError(
                f"source {name!r} has no documents in the {job.split} split:"
                f" {reasons or 'it is empty'}."
            )
    job.tokenizer.save(job.folder)
    lines = ((json.dumps(record) + "\n").encode() for record in records)
    shards = ("source", "documents", "tokens", "bytes")
    manifest = {
        "version": FORMAT_VERSION,
        "dtype": job.dtype,
        **{n: sum(record[n] for record in records) for n in shards[1:]},
        "tokenizer": job.tokenizer.digest,
        "recipe": {**old_recipe, **job.describe()},
        "records": write_checksummed(job.folder / SHARDS_FILE, lines),
        "starts": _write_starts(job, sum(r["documents"] for r in old), specs),
        "excluded": excluded,
        "shards": [
            {**{n: record[n] for n in shards}, "sha256": record["checksum"]["sha256"]}
            for record in records
        ],
    }
    _sync_folder(job.folder)
    write_atomic(job.folder / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
    _sync_folder(job.folder)


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


def _check_limits(job: BuildJob, records: Sequence[Record]) -> None:
    """Refuses a build with too many invalid or empty documents."""
    excluded = _summarize(records)
    rejected = excluded["rejected"]
    total = sum(record["documents"] for record in records)
    total += sum(excluded["filtered"].values())
    total += sum(entry["count"] for entry in rejected.values())
    for kind in ("invalid", "empty"):
        name = f"max_{kind}_fraction"
        entries = {r: entry for r, entry in rejected.items() if entry["kind"] == kind}
        count, limit = sum(e["count"] for e in entries.values()), getattr(job, name)
        if count > limit * total:
            locations = "".join(
                f"\n  {entry['count']:,} {reason}: {'; '.join(entry['locations'])}"
                for reason, entry in entries.items()
            )
            raise ConfigError(
                f"{count:,} of {total:,} documents are {kind}, more than"
                f" BuildTokenStore.{name} = {limit} allows: repair them, or raise the"
                f" limit (the shards in {job.folder} are kept).{locations}"
            )


def _read_record(path: Path) -> Record:
    """Reads the record of a shard, without what is only needed to resume."""
    record = json.loads(path.read_text())
    spans = [span[:-1] for span in record["spans"]]
    return {**record, "spans": spans, "recipe": None}


def _summarize(records: Iterable[Record]) -> dict[str, Any]:
    """Sums the documents that were removed by filters, or rejected, by reason."""
    filtered: Counter[str] = Counter()
    rejected: dict[str, dict[str, Any]] = {}
    for record in records:
        filtered.update(record["filtered"])
        for reason, entry in record["rejected"].items():
            add_rejected(rejected, reason, **entry)
    return {"filtered": filtered, "rejected": rejected}


def _sync_folder(folder: Path) -> None:
    """Waits until the names of files in the folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
