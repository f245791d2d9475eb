"""A token store, mapped into memory: one stream of tokens, and where documents begin.

    manifest.json     what there is, written last
    tokens-00000.bin  the tokens of a shard, little-endian, of two or four bytes each
    starts.bin        of each document its first token, then where all end; int64
    shards.jsonl      of each shard its checksums, and what was read for it
    tokenizer*        what `tokenizers.codec.load` reads

What is appended comes after what was there, so whoever has the store open reads on.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int64, UInt

from lmx.config.registry import ConfigError
from lmx.data.store.checksum import FileChecksum, find_mismatches
from lmx.data.tokenizer.base import Tokenizer, load

FORMAT_VERSION = 2  # raise it when the files change
VERIFY_BYTES = 64 * 2**20  # bytes of tokens that are hashed each time they are opened
MAX_MAPPED_FILES = (
    256  # shards at a time: each takes one of the files a process may open
)
MANIFEST_FILE, STARTS_FILE, SHARDS_FILE = "manifest.json", "starts.bin", "shards.jsonl"


class StoreDamageError(ConfigError):
    """What is wrong with a store, and where."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """The tokens of all documents in one stream, and where each document begins.

    Attributes:
        parts: the tokens in pieces that follow one another.
        borders: where each part begins, then where the last ends.
        starts: where each document begins, then where the last ends.
        bytes: of UTF-8 text.
        fingerprint: what the tokens are and what they mean, in digests.
        sources: the documents of each source, as ranges of their numbers.
    """

    parts: Sequence[UInt[np.ndarray, " _"]]
    part_offsets: Int64[np.ndarray, " _"]
    starts: Int64[np.ndarray, " _"]
    bytes: int
    fingerprint: Mapping[str, str]
    sources: Mapping[str, tuple[range, ...]]

    @property
    def size(self) -> int:
        """Tokens, with those that begin and end documents."""
        return int(self.part_offsets[-1])

    @property
    def documents(self) -> int:
        """Documents."""
        return len(self.starts) - 1

    def take(self, index: Int64[np.ndarray, "..."]) -> UInt[np.ndarray, "..."]:
        """The tokens at these places of the stream."""
        if not index.size:
            return self.parts[0][:0].reshape(index.shape)
        if index.min() < 0 or index.max() >= self.size:
            raise IndexError(f"{index} of a stream of {self.size} tokens")
        part = np.searchsorted(self.part_offsets, index, side="right") - 1
        first, last = int(part.min()), int(part.max())
        if first == last:
            return self.parts[first][index - self.part_offsets[first]]
        found = np.empty(index.shape, self.parts[first].dtype)
        for number in np.flatnonzero(np.bincount(part.ravel())).tolist():
            here = part == number
            found[here] = self.parts[number][index[here] - self.part_offsets[number]]
        return found

    def read(self, begin: int, end: int) -> UInt[np.ndarray, " _"]:
        """The tokens of that stretch of the stream; a view where one part has it."""
        if not 0 <= begin <= end <= self.size:
            raise IndexError(f"[{begin}, {end}) of a stream of {self.size} tokens")
        places = np.searchsorted(
            self.part_offsets, [begin, max(begin, end - 1)], "right"
        )
        first, last = (np.minimum(places, len(self.parts)) - 1).tolist()
        pieces = [
            self.parts[n][
                max(0, begin - self.part_offsets[n]) : end - self.part_offsets[n]
            ]
            for n in range(first, last + 1)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def locate(self, number: int) -> tuple[str, int]:
        """The source of a document, and which one it is there, from 0 on."""
        for name, ranges in self.sources.items():
            before = 0
            for some in ranges:
                if number in some:
                    return name, before + number - some.start
                before += len(some)
        raise IndexError(f"document {number} of {self.documents}")

    def read_document(self, number: int) -> UInt[np.ndarray, " _"]:
        """The tokens of a document, with begin and end."""
        return self.read(int(self.starts[number]), int(self.starts[number + 1]))


class MappedShards(Sequence[np.ndarray]):
    """Files of tokens, each mapped when it is first read from."""

    def __init__(self, paths: Sequence[Path], kind: np.dtype):
        self._paths, self._kind = paths, kind
        self._mapped = functools.lru_cache(MAX_MAPPED_FILES)(self._map)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        return self._mapped(int(number))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedShards, (self._paths, self._kind)

    def _map(self, number: int) -> np.ndarray:
        path = self._paths[number]
        if not path.stat().st_size:  # nothing cannot be mapped
            return np.empty(0, self._kind)
        return np.asarray(np.memmap(path, self._kind, mode="r"))


def open_store(folder: Path) -> Store:
    """The store that lies in the folder, if it is whole.

    Sizes are always checked, digests only of a small store: `verify` checks all.
    """
    told = read_manifest(folder)
    try:
        kind, shards = np.dtype(told["kind"]), told["shards"]
        sizes = [shard["tokens"] for shard in shards]
        expected = {
            format_shard_name(n): s * kind.itemsize for n, s in enumerate(sizes)
        }
        _check_sizes(folder, {STARTS_FILE: 8 * (told["documents"] + 1), **expected})
        store = Store(
            parts=MappedShards([folder / name for name in expected], kind),
            part_offsets=np.cumsum([0, *sizes], dtype=np.int64),
            starts=_map_starts(folder / STARTS_FILE, told["documents"]),
            bytes=told["bytes"],
            fingerprint={"tokens": _hash_tokens(told), "tokenizer": told["tokenizer"]},
            sources=_group_sources(shards),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise StoreDamageError(f"{folder / MANIFEST_FILE}: {error!r}") from error
    if store.size * kind.itemsize <= VERIFY_BYTES:
        for damage in verify(folder):
            raise damage
    return store


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a store says of itself."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise StoreDamageError(
            f"{folder} is no token store, it has no {MANIFEST_FILE}: give a folder that"
            " `lmx data build` has finished."
        )
    try:
        told = json.loads(path.read_text())
        layout = told["layout"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamageError(f"{path} is damaged: {error!r}") from error
    if layout != FORMAT_VERSION:
        raise StoreDamageError(
            f"{path} is of layout {layout}, this lmx reads {FORMAT_VERSION}: build it again."
        )
    return told


def load_store_tokenizer(folder: Path) -> Tokenizer:
    """What the tokens of a store mean, if its files still say what they said."""
    wanted, codec = read_manifest(folder)["tokenizer"], load(folder)
    if codec.digest != wanted:
        raise StoreDamageError(
            f"the tokenizer in {folder} is not the one its tokens were made with:"
            f" {codec.digest[:12]} instead of {wanted[:12]}. Bring back its file, or"
            " build the store again."
        )
    return codec


def format_shard_name(number: int) -> str:
    """The file of a shard."""
    return f"tokens-{number:05}.bin"


def verify(folder: Path) -> Iterator[StoreDamageError]:
    """Reads every byte of a store; what is not as it was written, and where."""
    told = read_manifest(folder)
    with (folder / SHARDS_FILE).open("rb") as lines:
        for number, shard in enumerate(told["shards"]):
            path = folder / format_shard_name(number)
            line = lines.readline()
            if hashlib.sha256(line).hexdigest() != shard["line"]:
                yield StoreDamageError(
                    f"{folder / SHARDS_FILE}: line {number + 1} is damaged."
                )
                continue
            yield from _verify_file(path, json.loads(line)["digest"])
    yield from _verify_file(folder / STARTS_FILE, told["starts"])


def _verify_file(path: Path, wanted: dict[str, Any]) -> Iterator[StoreDamageError]:
    """What of a file is not as its digest has it."""
    size = wanted["bytes"]
    try:
        with path.open("rb") as file:
            found = FileChecksum.of_file(file, size)
    except OSError as error:
        yield StoreDamageError(f"{path}: {error.strerror}")
        return
    if found.size < size:
        yield _truncation_error(path, found.size, size)
        return
    for begin, end in find_mismatches(found.to_json(), wanted):
        yield StoreDamageError(
            f"{path} is damaged between byte {begin} and byte {end}: build the store"
            " again, or bring back that file."
        )


def _check_sizes(folder: Path, expected: Mapping[str, int]) -> None:
    """Refuses files that are shorter than they should be, or missing."""
    for name, size in expected.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found < size:
            raise _truncation_error(path, found, size)


def _truncation_error(path: Path, found: int, size: int) -> StoreDamageError:
    return StoreDamageError(
        f"{path} ends at byte {found}, and had {size} when it was written: build the"
        " store again, or bring back that file."
    )


def _map_starts(path: Path, documents: int) -> Int64[np.ndarray, " _"]:
    """The first of the file: more may have been appended since."""
    return np.asarray(np.memmap(path, "<i8", mode="r", shape=(documents + 1,)))


def _hash_tokens(told: Mapping[str, Any]) -> str:
    """SHA-256 of all tokens and of where documents begin."""
    parts = [told["kind"], told["starts"]["sha256"]]
    parts += [shard["sha256"] for shard in told["shards"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _group_sources(shards: Sequence[Mapping[str, Any]]) -> dict[str, tuple[range, ...]]:
    """The documents of each source: shards that follow one another make one range."""
    found: dict[str, list[range]] = {}
    begin = 0
    for shard in shards:
        ranges, end = found.setdefault(shard["source"], []), begin + shard["documents"]
        if ranges and ranges[-1].stop == begin:
            ranges[-1] = range(ranges[-1].start, end)
        else:
            ranges.append(range(begin, end))
        begin = end
    return {name: tuple(filter(len, ranges)) for name, ranges in found.items()}
