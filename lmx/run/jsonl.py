"""Append-only JSON Lines files; no kill and no full disk leaves a partial line."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmx.core.files import write_atomic


class JsonlWriter:
    """Appends lines to a file. Lines that cannot be written stay `pending`."""

    def __init__(self, path: Path):
        self.path, self.pending = path, b""
        self._file: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the file, pending lines included."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return size + len(self.pending)

    def truncate(
        self, keep: Callable[[Mapping[str, Any]], bool], size: int | None = None
    ) -> None:
        """Keeps only lines for which `keep` is true, out of the first `size` bytes."""
        lines = [json.dumps(row) for row in read_jsonl(self.path, size) if keep(row)]
        write_atomic(self.path, "".join(f"{line}\n" for line in lines).encode())

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line; OSError if it cannot be written now."""
        self.pending += f"{json.dumps(row, allow_nan=False)}\n".encode()
        self.flush()

    def flush(self) -> None:
        """Writes all pending lines, or none of them and raises OSError."""
        if not self.pending:
            return
        if self._file is None:
            self._file = self._open()
        size, rest = os.fstat(self._file).st_size, self.pending
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self.pending = b""

    def _open(self) -> int:
        """Opens the file, and removes a partial last line."""
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        os.ftruncate(file, self.path.read_bytes().rfind(b"\n") + 1)
        return file

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_jsonl(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """The complete lines in the first `size` bytes of a file; none if it is missing."""
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes()[:size].split(b"\n")  # the last one is not complete
    return [json.loads(line) for line in lines]
