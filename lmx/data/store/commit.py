"""The end of a build: many shards become one store, all at once."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmx.config.registry import ConfigError
from lmx.core.files import open_atomic, write_atomic
from lmx.data.store import shard_plan
from lmx.data.store.checksum import FileChecksum
from lmx.data.store.shard_writer import (
    MAX_LOCATIONS,
    BuildJob,
    ShardSpec,
    get_lengths_path,
    get_record_path,
)
from lmx.data.store.store import FORMAT_VERSION, MANIFEST_FILE, SHARDS_FILE, STARTS_FILE

Record = Mapping[str, Any]


def commit(
    job: BuildJob,
    specs: Sequence[ShardSpec],
    recipe: Mapping[str, Any],
    sources: Mapping[str, str],
    limits: Mapping[str, float],
) -> None:
    """Writes what makes a store of the shards: where documents begin, the manifest.

    What is there of an older store only grows, so that it is whole at any moment.
    """
    old = shard_plan.read_records(job.folder)
    new = [json.loads(get_record_path(job, p.number).read_text()) for p in specs]
    every = [*old, *new]
    _check_limits(job, new, limits)
    for name in dict.fromkeys(piece.source for piece in specs):
        if not any(r["documents"] for r in every if r["source"] == name):
            raise _empty_source_error(
                job, name, [r for r in every if r["source"] == name]
            )
    job.codec.save(job.folder)
    lines = [(json.dumps(record) + "\n").encode() for record in every]
    with open_atomic(job.folder / SHARDS_FILE) as file:
        file.writelines(lines)
    starts = _write_starts(job, sum(record["documents"] for record in old), specs)
    told = {
        "layout": FORMAT_VERSION,
        "kind": job.dtype,
        "documents": sum(record["documents"] for record in every),
        "tokens": sum(record["tokens"] for record in every),
        "bytes": sum(record["bytes"] for record in every),
        "tokenizer": job.codec.digest,
        "recipe": recipe,
        "sources": dict(sorted(sources.items())),
        "starts": starts,
        "left_out": {
            name: _summarize_rejected(every, name)
            for name in sorted(_source_names(every))
        },
        "shards": [
            {
                **{name: record[name] for name in ("source", "documents", "tokens")},
                "sha256": record["digest"]["sha256"],
                "line": hashlib.sha256(line).hexdigest(),
            }
            for record, line in zip(every, lines, strict=True)
        ],
    }
    _sync_folder(job.folder)
    write_atomic(job.folder / MANIFEST_FILE, json.dumps(told, indent=1).encode())
    _sync_folder(job.folder)


def _write_starts(
    job: BuildJob, before: int, pieces: Iterable[ShardSpec]
) -> dict[str, Any]:
    """Writes where documents begin, after those that are known. Returns the digest."""
    path, digest = job.folder / STARTS_FILE, FileChecksum()
    known = np.fromfile(path, "<i8", before + 1) if before else np.zeros(1, "<i8")
    with open_atomic(path) as file:
        for part in _iter_starts(known, job, pieces):
            data = part.astype("<i8").view(np.uint8).data
            file.write(data)
            digest.update(data)
    return digest.to_json()


def _iter_starts(
    known: np.ndarray, job: BuildJob, pieces: Iterable[ShardSpec]
) -> Iterator[np.ndarray]:
    yield known
    end = known[-1]
    for piece in pieces:
        ends = end + np.fromfile(get_lengths_path(job, piece.number), "<i8").cumsum()
        if len(ends):
            yield ends
            end = ends[-1]


def _check_limits(
    job: BuildJob, records: Sequence[Record], limits: Mapping[str, float]
) -> None:
    """Refuses a store of which too many documents were none."""
    left = _summarize_rejected(records, None)
    kept = sum(record["documents"] for record in records)
    every = kept + sum(left["filtered"].values())
    every += sum(found["count"] for found in left["set_aside"].values())
    for kind, limit in limits.items():
        found = {r: f for r, f in left["set_aside"].items() if f["kind"] == kind}
        count = sum(one["count"] for one in found.values())
        if count > limit * every:
            places = "".join(
                f"\n  {one['count']:,} {reason}: {'; '.join(one['first'])}"
                for reason, one in found.items()
            )
            raise ConfigError(
                f"{count:,} of {every:,} documents are {kind}, more than BuildTokenStore.{kind} ="
                f" {limit} allows: repair them, or allow more (what is built in"
                f" {job.folder} is kept).{places}"
            )


def _empty_source_error(
    job: BuildJob, name: str, records: Sequence[Record]
) -> ConfigError:
    """Says that a source came to nothing, and why."""
    left = _summarize_rejected(records, None)
    if not left["filtered"]:
        return job.sources[name].empty_split_error(job.split)
    gone = {r: f["count"] for r, f in left["set_aside"].items()} | left["filtered"]
    told = ", ".join(f"{count:,} {reason}" for reason, count in gone.items())
    return ConfigError(f"source {name!r} has no document that was kept: {told}.")


def _source_names(records: Iterable[Record]) -> set[str]:
    return {record["source"] for record in records}


def _summarize_rejected(
    records: Iterable[Record], source: str | None
) -> dict[str, Any]:
    """What filters took and what was no document, of a source or of all."""
    filtered: dict[str, int] = {}
    aside: dict[str, dict[str, Any]] = {}
    for record in records:
        if source not in (None, record["source"]):
            continue
        for reason, count in record["dropped"].items():
            filtered[reason] = filtered.get(reason, 0) + count
        for reason, found in record["aside"].items():
            new = {"kind": found["kind"], "count": 0, "first": []}
            known = aside.setdefault(reason, new)
            known["count"] += found["count"]
            known["first"] = [*known["first"], *found["first"]][:MAX_LOCATIONS]
    return {"filtered": filtered, "set_aside": aside}


def _sync_folder(folder: Path) -> None:
    """Waits until the names in the folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
