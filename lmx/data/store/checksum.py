"""What a file should be, so that damage is found and can be pointed at."""

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

BLOCK_BYTES = 2**20  # bytes that have a checksum of their own


class FileChecksum:
    """SHA-256 of bytes as they come, and a CRC-32 of each mebibyte of them."""

    def __init__(self):
        self.size = 0  # bytes so far
        self._sha, self._blocks, self._block = hashlib.sha256(), [], 0

    def update(self, data: bytes | memoryview) -> None:
        """Takes in the bytes that come next."""
        view = memoryview(data)
        self._sha.update(view)
        while len(view):
            room = BLOCK_BYTES - self.size % BLOCK_BYTES
            part, view = view[:room], view[room:]
            self._block = zlib.crc32(part, self._block)
            self.size += len(part)
            if self.size % BLOCK_BYTES == 0:
                self._blocks.append(self._block)
                self._block = 0

    def to_json(self) -> dict[str, Any]:
        """The digest as JSON keeps it."""
        rest = [self._block] if self.size % BLOCK_BYTES else []
        return {
            "bytes": self.size,
            "sha256": self._sha.hexdigest(),
            "blocks": [f"{crc:08x}" for crc in (*self._blocks, *rest)],
        }

    @classmethod
    def of_file(cls, file: BinaryIO, size: int) -> "FileChecksum":
        """Of the first `size` bytes of a file, or of all if it has fewer."""
        digest = cls()
        while data := file.read(min(BLOCK_BYTES, size - digest.size)):
            digest.update(data)
        return digest


def find_mismatches(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple]:
    """The stretches [begin, end) of bytes in which two digests of one size differ."""
    pairs = enumerate(zip(found["blocks"], wanted["blocks"], strict=True))
    blocks = [number for number, (one, other) in pairs if one != other]
    for number in blocks:
        yield number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, wanted["bytes"])
    if not blocks and found["sha256"] != wanted["sha256"]:
        yield 0, wanted["bytes"]
