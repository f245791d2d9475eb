"""Files of JSON objects, one a line, that grow by whole lines and outlive any kill."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class JsonlWriter:
    """One such file. A line that cannot be written is held, and goes before others."""

    def __init__(self, path: Path):
        self.path, self.pending = path, b""
        self._file: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the file, once what is held is written."""
        there = self.path.stat().st_size if self.path.exists() else 0
        return there + len(self.pending)

    def truncate(
        self, keep: Callable[[Mapping[str, Any]], bool], size: int | None = None
    ) -> None:
        """Leaves what is to be kept of the whole lines in the first `size` bytes."""
        lines = [json.dumps(row) for row in read_jsonl(self.path, size) if keep(row)]
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self.path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line. OSError if it cannot be, and the file is as it was before."""
        self.pending += f"{json.dumps(row, allow_nan=False)}\n".encode()
        self.flush()

    def flush(self) -> None:
        """Writes what is held; OSError if it cannot be, and nothing of it is there."""
        if not self.pending:
            return
        if self._file is None:
            self._file = self._open()
        before, rest = os.fstat(self._file).st_size, self.pending
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise
        self.pending = b""

    def _open(self) -> int:
        """The file, to be added to, without the line that a kill tore."""
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        os.ftruncate(file, self.path.read_bytes().rfind(b"\n") + 1)
        return file

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_jsonl(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """The whole lines of the file, or of its first bytes; none if it is not there."""
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes()[:size].split(b"\n")  # the last is torn, or empty
    return [json.loads(line) for line in lines]
