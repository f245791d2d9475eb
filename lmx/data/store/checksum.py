"""Checksums of files, per block, that localize corruption."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmx.core.files import open_atomic

BLOCK_BYTES = 2**20  # with a CRC-32 of their own


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
        return compute_checksum(chunk for chunk in chunks if file.write(chunk) >= 0)


def read_checksum(path: Path, size: int) -> dict[str, Any]:
    """Returns the checksum of the first `size` bytes of a file, or of all it has."""
    with path.open("rb") as file:
        sizes = (min(BLOCK_BYTES, size - n) for n in range(0, size, BLOCK_BYTES))
        return compute_checksum(map(file.read, sizes))


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
