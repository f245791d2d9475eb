"""Best-fit packing: which documents share a row, made once for each length and kept."""

import bisect
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from lmx.config.registry import ConfigError
from lmx.core.files import create_dir_once, get_cache_dir, remove_dir

FORMAT_VERSION = 1  # raise it when the files, or what is in them, change
ATTEMPTS = 3  # another process may discard what this one has just made
MAX_HASHED_BYTES = 64 * 2**20  # bytes that are hashed each time they are opened
ARRAY_DTYPES = {"firsts": "<i8", "begins": "<i8", "slots": "<i4"}
MANIFEST = "manifest.json"


class RowContents(NamedTuple):
    """What is in a row: so many pieces of a size, after those of `rest`."""

    previous: "RowContents | None"
    size: int
    count: int


class PackedRows(NamedTuple):
    """Row r holds the pieces [firsts[r], firsts[r + 1]) in this order."""

    row_starts: Int64[np.ndarray, " _"]
    starts: Int64[np.ndarray, " M"]  # in the stream
    lengths: Int32[np.ndarray, " M"]  # tokens in the row, each with the next as target

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.row_starts) - 1


def load_or_pack(
    starts: Int64[np.ndarray, " _"], fingerprint: Mapping[str, str], length: int
) -> PackedRows:
    """The documents that begin there, in rows of `length` tokens: from the cache, or
    made now. Damage is made good.
    """
    words = json.dumps([FORMAT_VERSION, dict(fingerprint), length])
    key = hashlib.sha256(words.encode()).hexdigest()[:32]
    path = get_cache_dir("rows") / key
    fill = functools.partial(_write, starts, length)
    for _ in range(ATTEMPTS):
        if not path.is_dir():
            create_dir_once(path, fill)
        try:
            return _read(path)
        except (OSError, ValueError, KeyError) as damage:
            logging.getLogger(__name__).warning("%s: %s: made anew", path, damage)
            remove_dir(path)
    raise ConfigError(
        f"{path} does not stay as it is written: set LMX_CACHE to a sound disk."
    )


def _write(starts: Int64[np.ndarray, " _"], length: int, folder: Path) -> None:
    """Packs the documents into the new folder."""
    folder.mkdir()
    fit = pack_documents(starts, length)
    digests = {}
    for name, kind in ARRAY_DTYPES.items():
        data = np.ascontiguousarray(getattr(fit, name), kind)
        data.tofile(folder / name)
        digests[name] = [len(data), hashlib.sha256(data.data).hexdigest()]
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))


def _read(path: Path) -> PackedRows:
    """The packing as it lies there, mapped into memory, if it is whole."""
    manifest, found = json.loads((path / MANIFEST).read_text()), {}
    for name, kind in ARRAY_DTYPES.items():
        size, digest = manifest[name]
        found[name] = np.memmap(path / name, kind, mode="r")
        if len(found[name]) != size:
            raise ValueError(f"{name} has {len(found[name])} numbers, not {size}")
        if found[name].nbytes <= MAX_HASHED_BYTES:
            if hashlib.sha256(found[name].data).hexdigest() != digest:
                raise ValueError(f"{name} is not what was written")
    return PackedRows(**{name: np.asarray(data) for name, data in found.items()})


def pack_documents(starts: Int64[np.ndarray, " _"], length: int) -> PackedRows:
    """Packs documents: what is longer than a row into full rows, and then its rest."""
    targets = np.maximum(np.diff(starts) - 1, 0)
    full, rest = np.divmod(targets, length)
    if not targets.any():
        raise ConfigError(
            "no document has two tokens, so none is a target: give more text."
        )
    whole = np.repeat(np.arange(len(full)), full)
    nth = np.arange(len(whole)) - np.repeat(np.cumsum(full) - full, full)
    some = np.flatnonzero(rest)
    begins = np.concatenate([
        starts[whole] + nth * length,
        starts[some] + full[some] * length,
    ])  # fmt: skip
    slots = np.concatenate([np.full(len(whole), length), rest[some]])
    pieces = np.argsort(slots, kind="stable")  # equal sizes in the order of the stream
    firsts, chosen = assign_rows(np.bincount(slots, minlength=length + 1), pieces)
    return PackedRows(firsts, begins[chosen], slots[chosen].astype(np.int32))


def assign_rows(
    counts: Int64[np.ndarray, " _"], pieces: Integer[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " _"], Integer[np.ndarray, " M"]]:
    """Rows of pieces, by groups of rows that hold the same sizes.

    `counts[s]` is how many pieces of size s there are; `pieces` are sorted by size.
    """
    next_of = np.cumsum(counts) - counts
    firsts, dealt, done = [np.zeros(1, np.int64)], [], 0
    for rows, row in pack_best_fit(counts.tolist()):
        columns = []
        while row is not None:
            low, high = next_of[row.size], next_of[row.size] + rows * row.count
            next_of[row.size] = high
            columns.append(pieces[low:high].reshape(rows, row.count))
            row = row.previous
        block = np.concatenate(columns[::-1], axis=1)
        firsts.append(done + block.shape[1] * np.arange(1, rows + 1))
        dealt.append(block.reshape(-1))
        done += block.size
    return np.concatenate(firsts), np.concatenate(dealt)


def pack_best_fit(counts: list[int]) -> Iterator[tuple[int, RowContents | None]]:
    """Best-fit decreasing of `counts[s]` pieces of size s: how many rows hold what.

    The largest size goes first, into the rows with the least room that is enough. An
    empty row has room for the largest size that `counts` knows. Rows that hold the same
    are treated as one, so that the work grows with the number of sizes, not of pieces.
    Krell et al. 2021, arXiv:2107.02027, pack histograms for the same reason.
    """
    length = len(counts) - 1
    begun = OpenRows()
    for size in range(length, 0, -1):
        count = counts[size]
        while count:
            rows, room, row = begun.pop_best_fit(size) or (count, length, None)
            each = room // size
            full = min(rows, count // each)
            rest = count % each if full < rows else 0
            begun.add(full, room - each * size, RowContents(row, size, each))
            if rest:
                begun.add(1, room - rest * size, RowContents(row, size, rest))
            if row is not None:
                begun.add(rows - full - min(rest, 1), room, row)
            count -= full * each + rest
    for groups in begun.groups.values():
        yield from groups


class OpenRows:
    """Rows that hold something, by the room that they still have."""

    def __init__(self):
        self.groups: dict[int, list[tuple[int, RowContents | None]]] = {}
        self.capacities: list[int] = []  # the keys, sorted

    def add(self, rows: int, room: int, row: RowContents) -> None:
        """So many rows with that room, if there are any."""
        if rows and room not in self.groups:
            bisect.insort(self.capacities, room)
            self.groups[room] = []
        if rows:
            self.groups[room].append((rows, row))

    def pop_best_fit(self, size: int) -> tuple[int, int, RowContents | None] | None:
        """Alike rows with the least room for the size, that room, what they hold."""
        index = bisect.bisect_left(self.capacities, size)
        if index == len(self.capacities):
            return None
        room = self.capacities[index]
        rows, row = self.groups[room].pop()
        if not self.groups[room]:
            del self.groups[room], self.capacities[index]
        return rows, room, row
