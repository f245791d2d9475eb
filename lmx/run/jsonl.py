"""Append-only JSON Lines files; no kill and no full disk leaves a partial line."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmx.core.console import print_line, print_once
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
        """Keeps only lines for which `keep` is true, out of the first `size` bytes.

        Moves damaged lines to another file, which is named in a warning.
        """
        rows, damaged = _parse(self.path, size)
        if damaged:
            moved = self.path.with_name(f"{self.path.name}.damaged")
            with moved.open("ab") as file:
                file.writelines(line + b"\n" for line in damaged)
            print_line(f"warning: {len(damaged)} damaged lines are moved to {moved}.")
        lines = [json.dumps(row) for row in rows if keep(row)]
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
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_jsonl(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """The complete lines in the first `size` bytes of a file; none if it is missing.

    Damaged lines are left out, and reported once.
    """
    rows, damaged = _parse(path, size)
    if damaged:
        print_once(
            f"warning: {path} has {len(damaged)} damaged lines, which are left out."
        )
    return rows


def _parse(path: Path, size: int | None) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The rows of the complete lines, and the lines that are no JSON objects."""
    if not path.is_file():
        return [], []
    *lines, _ = path.read_bytes()[:size].split(b"\n")  # the last one is not complete
    rows, damaged = [], []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged.append(line)
    return rows, damaged
