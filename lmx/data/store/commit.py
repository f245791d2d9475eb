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
Summary = dict[str, dict[str, Any]]  # by source


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
        if not source["documents"]:
            counts = {why: entry["count"] for why, entry in source["rejected"].items()}
            counts |= source["filtered"]
            reasons = (f"{count:,} {why}" for why, count in counts.items())
            raise ConfigError(
                f"source {name!r} has no documents in the {job.split} split:"
                f" {', '.join(reasons) or 'it is empty'}."
            )
    _check_limits(job, _summarize(new))
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


def _check_limits(job: BuildJob, sources: Summary) -> None:
    """Refuses a build with too many invalid or empty documents."""
    rejected: dict[str, dict[str, Any]] = {}
    total = 0
    for source in sources.values():
        total += source["documents"] + sum(source["filtered"].values())
        for reason, entry in source["rejected"].items():
            total += entry["count"]
            add_rejected(rejected, reason, **entry)
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


def _sync_folder(folder: Path) -> None:
    """Waits until the names of files in the folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
