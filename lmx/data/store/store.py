"""Token stores: one memory-mapped stream of tokens, and where documents begin.

    manifest.json     summary of the store, written last
    tokens-00000.bin  tokens of a shard, little-endian, two or four bytes each
    starts.bin        the first token of each document, then the end of the last; int64
    shards.jsonl      checksum and input of each shard
    tokenizer/        read by `load_tokenizer`

Added documents follow the old ones, so that an open store stays readable.
"""

import functools
import hashlib
import itertools
import json
import operator
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt

from lmx.config.json_object import WRONG_KIND, parse_object
from lmx.config.registry import ConfigError
from lmx.core.files import open_atomic
from lmx.data.tokenizer.base import Tokenizer
from lmx.data.tokenizer.pretrained import load_tokenizer

FORMAT_VERSION = 3  # increased when the files change
VERIFY_BYTES = 64 * 2**20  # stores up to this size are verified when they are opened
MAX_MAPPED_FILES = 256  # each is an open file, and their number is limited
BLOCK_BYTES = 2**20  # each block has a CRC-32
MANIFEST_FILE, STARTS_FILE, SHARDS_FILE = "manifest.json", "starts.bin", "shards.jsonl"


class StoreDamageError(ConfigError):
    """A token store is damaged, missing, or of another format."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """The tokens of all documents in one stream, and where each document begins.

    Attributes:
        parts: consecutive parts of the stream.
        part_offsets: where each part begins, then the end of the last.
        starts: where each document begins, then the end of the last.
        bytes: size of the UTF-8 text.
        fingerprint: digests of the tokens and of the tokenizer.
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
        """Tokens, including BOS and EOS."""
        return int(self.part_offsets[-1])

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    def read(self, begin: int, end: int) -> UInt[np.ndarray, " _"]:
        """Returns a range of the stream: a view if it is within one part."""
        if not 0 <= begin <= end <= self.size:
            raise IndexError(f"[{begin}, {end}) of a stream of {self.size} tokens")
        offsets = self.part_offsets
        parts = np.searchsorted(offsets, [begin, max(begin, end - 1)], "right")
        first, last = (np.minimum(parts, len(self.parts)) - 1).tolist()
        pieces = [
            self._read_part(n, max(0, begin - offset), end - offset)
            for n, offset in enumerate(offsets[first : last + 1].tolist(), first)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _read_part(self, number: int, begin: int, end: int) -> UInt[np.ndarray, " _"]:
        if isinstance(self.parts, MappedShards):
            self.parts.verify(number, begin, end)
        return self.parts[number][begin:end]

    def locate(self, number: int) -> tuple[str, int]:
        """Returns the source of a document, and its number within that source."""
        for name, ranges in self.sources.items():
            before = 0
            for documents in ranges:
                if number in documents:
                    return name, before + number - documents.start
                before += len(documents)
        raise IndexError(f"document {number} of {self.documents}")

    def read_document(self, number: int) -> UInt[np.ndarray, " _"]:
        return self.read(int(self.starts[number]), int(self.starts[number + 1]))


class MappedShards(Sequence[np.ndarray]):
    """Files of tokens, each mapped into memory when it is first read.

    `blocks` are the CRC-32 of the blocks of each file.
    """

    def __init__(
        self, paths: Sequence[Path], dtype: np.dtype, blocks: Sequence[Sequence[str]]
    ):
        self._paths, self._dtype, self._blocks = paths, dtype, blocks
        self._unverified = [bytearray([1] * len(crcs)) for crcs in blocks]
        self._open = functools.lru_cache(MAX_MAPPED_FILES)(self._map)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: Any) -> Any:
        return self._open(int(number))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedShards, (self._paths, self._dtype, self._blocks)

    def select(self, numbers: Sequence[int]) -> "MappedShards":
        paths = [self._paths[n] for n in numbers]
        return MappedShards(paths, self._dtype, [self._blocks[n] for n in numbers])

    def verify(self, number: int, begin: int, end: int) -> None:
        """Reads the blocks of these tokens that this process has not yet read.

        Raises StoreDamageError for one that is damaged. A first random token thus costs
        a block: a megabyte from the disk, and 0.6 ms.
        """
        block = begin * self._dtype.itemsize // BLOCK_BYTES
        last = -(-end * self._dtype.itemsize // BLOCK_BYTES)
        unverified = self._unverified[number]
        while (block := unverified.find(1, block, last)) >= 0:
            data = self[number].view(np.uint8)
            at, to = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, len(data))
            if f"{zlib.crc32(data[at:to]):08x}" != self._blocks[number][block]:
                damage = f"is damaged between byte {at} and byte {to}"
                raise _damage_error(self._paths[number], damage)
            unverified[block] = 0

    def _map(self, number: int) -> np.ndarray:
        path = self._paths[number]
        size = path.stat().st_size // self._dtype.itemsize
        if not size:  # an empty file cannot be mapped
            return np.empty(0, self._dtype)
        return np.asarray(np.memmap(path, self._dtype, mode="r", shape=(size,)))


def open_store(folder: Path) -> Store:
    """Opens the store in the folder, and refuses it if it is damaged.

    Sizes and the starts of documents are always checked, tokens only of a small store,
    those of others when they are read: `verify` checks all.
    """
    manifest = read_manifest(folder)
    try:
        dtype, documents = np.dtype(manifest["dtype"]), manifest["documents"]
        sizes = [operator.index(shard["tokens"]) for shard in manifest["shards"]]
        paths = [folder / format_shard_name(n) for n in range(len(sizes))]
        starts = folder / STARTS_FILE
        expected = [dtype.itemsize * size for size in sizes] + [8 * (documents + 1)]
        for path, size in zip([*paths, starts], expected, strict=True):
            found = path.stat().st_size if path.is_file() else 0
            if found < size:
                raise _damage_error(path, f"ends at byte {found} but had {size} bytes")
        shard_hashes = [shard["sha256"] for shard in manifest["shards"]]
        hashes = [manifest["dtype"], manifest["starts"]["sha256"], *shard_hashes]
        tokens = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        for damage in verify(folder, tokens=False):
            raise damage
        blocks = [record["checksum"]["blocks"] for record in read_records(folder)]
        store = Store(
            parts=MappedShards(paths, dtype, blocks),
            part_offsets=np.cumsum([0, *sizes], dtype=np.int64),
            starts=np.asarray(np.memmap(starts, "<i8", "r", shape=(documents + 1,))),
            bytes=manifest["bytes"],
            fingerprint={"tokens": tokens, "tokenizer": manifest["tokenizer"]},
            sources=_group_sources(manifest["shards"]),
        )
        if store.documents and store.starts[[0, -1]].tolist() != [0, store.size]:
            raise ValueError(f"{STARTS_FILE} is of other shards")
    except ConfigError:
        raise
    except (OSError, *WRONG_KIND) as error:
        raise StoreDamageError(f"{folder / MANIFEST_FILE}: {error!r}") from error
    if store.size * dtype.itemsize <= VERIFY_BYTES:
        for damage in verify(folder):
            raise damage
    return store


def _group_sources(shards: Sequence[Mapping[str, Any]]) -> dict[str, tuple[range, ...]]:
    """Returns the documents of each source; consecutive shards make one range."""
    sources: dict[str, tuple[range, ...]] = {}
    begin = 0
    for name, group in itertools.groupby(shards, lambda shard: shard["source"]):
        end = begin + sum(shard["documents"] for shard in group)
        known = sources.setdefault(name, ())
        sources[name] = (*known, range(begin, end)) if end > begin else known
        begin = end
    return sources


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the summary of a store."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise StoreDamageError(
            f"{folder} is not a token store, it has no {MANIFEST_FILE}: name a folder"
            " in which `lmx data build` has finished."
        )
    try:
        manifest = parse_object(path.read_bytes(), path)
    except ConfigError as error:
        raise StoreDamageError(f"{path} is damaged: {error}") from error
    if (version := manifest.get("version")) != FORMAT_VERSION:
        raise StoreDamageError(
            f"{path} has format version {version}, this lmx reads {FORMAT_VERSION}:"
            " build the store again."
        )
    return manifest


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Reads the counts, the checksum and the input of each shard of a store."""
    count = len(read_manifest(folder)["shards"])
    with (folder / SHARDS_FILE).open() as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def load_store_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a store; refuses it if it is not the one of the tokens."""
    expected, tokenizer = read_manifest(folder)["tokenizer"], load_tokenizer(folder)
    if tokenizer.digest != expected:
        raise StoreDamageError(
            f"the tokenizer in {folder} is not the one its tokens were made with:"
            f" {tokenizer.digest[:12]} instead of {expected[:12]}. Restore its file, or"
            " build the store again."
        )
    return tokenizer


def format_shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"tokens-{number:05}.bin"


def verify(folder: Path, tokens: bool = True) -> Iterator[StoreDamageError]:
    """Reads every byte of a store; yields an error for each damaged range."""
    manifest = read_manifest(folder)
    damages = [*_verify_file(folder / SHARDS_FILE, manifest["records"])]
    yield from damages
    records = read_records(folder) if tokens and not damages else []
    for number, record in enumerate(records):
        yield from _verify_file(folder / format_shard_name(number), record["checksum"])
    yield from _verify_file(folder / STARTS_FILE, manifest["starts"])


def _verify_file(path: Path, expected: dict[str, Any]) -> Iterator[StoreDamageError]:
    size = expected["bytes"]
    sizes = (min(BLOCK_BYTES, size - n) for n in range(0, size, BLOCK_BYTES))
    try:
        with path.open("rb") as file:
            found = compute_checksum(itertools.takewhile(len, map(file.read, sizes)))
    except OSError as error:
        yield StoreDamageError(f"{path}: {error.strerror}")
        return
    if found["bytes"] < size:
        yield _damage_error(path, f"ends at byte {found['bytes']} but had {size} bytes")
        return
    for begin, end in find_mismatches(found, expected):
        yield _damage_error(path, f"is damaged between byte {begin} and byte {end}")


def _damage_error(path: Path, damage: str) -> StoreDamageError:
    return StoreDamageError(
        f"{path} {damage}: build the store again, or restore that file."
    )


def compute_checksum(chunks: Iterable[bytes]) -> dict[str, Any]:
    """Returns the size, the SHA-256 and the CRC-32 of each block, as JSON."""
    sha, blocks, size = hashlib.sha256(), [], 0
    for chunk in chunks:
        sha.update(chunk)
        view = memoryview(chunk)
        while view:
            if size % BLOCK_BYTES == 0:
                blocks.append(0)
            part = view[: BLOCK_BYTES - size % BLOCK_BYTES]
            blocks[-1] = zlib.crc32(part, blocks[-1])
            size += len(part)
            view = view[len(part) :]
    hexadecimal = [f"{crc:08x}" for crc in blocks]
    return {"bytes": size, "sha256": sha.hexdigest(), "blocks": hexadecimal}


def write_checksummed(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Writes a file, which appears once it is complete. Returns its checksum."""
    with open_atomic(path) as file:

        def write() -> Iterator[bytes]:
            for chunk in chunks:
                file.write(chunk)
                yield chunk

        return compute_checksum(write())


def find_mismatches(
    found: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[tuple[int, int]]:
    """Yields the byte ranges [begin, end) in which two files of one size differ."""
    pairs = zip(found["blocks"], expected["blocks"], strict=True)
    begins = [n * BLOCK_BYTES for n, (a, b) in enumerate(pairs) if a != b]
    for begin in begins:
        yield begin, min(begin + BLOCK_BYTES, expected["bytes"])
    if not begins and found["sha256"] != expected["sha256"]:
        yield 0, expected["bytes"]
