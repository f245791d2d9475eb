"""JSON objects by the line, plain or compressed, from anywhere in a file."""

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document, InvalidDocument

MAX_DOCUMENT_BYTES = 2**30  # bytes of a document: what must fit in memory
READ_BYTES = 2**20  # bytes read at a time of what is only counted or passed over
ZSTD_READ_BYTES = (
    2**12
)  # bytes of Zstandard at a time: what they can hold, 128 MiB, is in memory
ZSTD_SUFFIX = ".zst"


class TextField(NamedTuple):
    """Which field of a JSON object, or of a row, is the text."""

    name: str
    owner: str  # the class whose parameter `text_field` names it

    def extract(
        self, item: Any, name: str, path: Path, place: str
    ) -> Document | InvalidDocument:
        """The document that an object holds."""
        if not isinstance(item, dict):
            return InvalidDocument("broken", "no JSON object, {...}", path, place)
        if self.name not in item:
            there = ", ".join(map(repr, item)) or "none"
            advice = f"there are {there}: set {self.owner}.text_field"
            return InvalidDocument(
                "broken", f"no field {self.name!r}", path, place, advice
            )
        return self.validate(item[self.name], name, path, place)

    def validate(
        self, text: Any, name: str, path: Path, place: str
    ) -> Document | InvalidDocument:
        """The document of that text, if it is one."""
        if not isinstance(text, str):
            kind = type(text).__name__
            reason = f"no text but {kind} in {self.name!r}"
            return InvalidDocument("broken", reason, path, place)
        if not text:
            return InvalidDocument("empty", "empty text", path, place)
        if not text.isascii() and not _is_encodable(text):
            reason = f"half a surrogate pair, which is no character, in {self.name!r}"
            return InvalidDocument("broken", reason, path, place)
        return Document(name, text)


def read_lines(
    path: Path, name: str, begin: int, end: int, field: TextField
) -> Iterator[Document | InvalidDocument]:
    """The documents whose lines begin in [begin, end) of the bytes, in order.

    Of a compressed file, of the bytes that it holds. Blank lines are nothing. A
    document is called after its file and the byte at which its line begins.
    """
    with closing(open_binary(path)) as file:
        at = _seek_line_start(file, begin)
        while at < end and (line := file.readline(MAX_DOCUMENT_BYTES + 1)):
            size = len(line)
            if size > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                size += _skip_line(file)
                reason = f"a line of more than {MAX_DOCUMENT_BYTES} bytes"
                yield InvalidDocument("broken", reason, path, f"byte {at}", "part it.")
            elif not line.isspace():
                yield _parse_line(line, path, name, at, field)
            at += size


def _parse_line(
    line: bytes, path: Path, name: str, at: int, field: TextField
) -> Document | InvalidDocument:
    """The document of one line."""
    place = f"byte {at}"
    text = try_decode_utf8(line, path, at)
    if isinstance(text, InvalidDocument):
        return text
    try:
        item = json.loads(text)
    except json.JSONDecodeError as error:
        here = at + len(text[: error.pos].encode())
        return InvalidDocument(
            "broken", f"not JSON ({error.msg})", path, f"byte {here}"
        )
    except (ValueError, RecursionError) as error:  # a number, or nesting, without end
        return InvalidDocument(
            "broken", f"not JSON ({type(error).__name__})", path, place
        )
    return field.extract(item, f"{name}@{at}", path, place)


def decode_utf8(raw: bytes, path: Path, begin: int = 0) -> str:
    """The text of bytes that lie in the file from byte `begin` on, newlines kept."""
    text = try_decode_utf8(raw, path, begin)
    if isinstance(text, InvalidDocument):
        raise text.to_error()
    return text


def try_decode_utf8(raw: bytes, path: Path, begin: int = 0) -> str | InvalidDocument:
    """`decode_utf8`, or what is wrong."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        advice = "save it as UTF-8 or leave it out."
        place = f"byte {begin + error.start} (0x{raw[error.start]:02x})"
        return InvalidDocument("broken", "not UTF-8", path, place, advice)


def open_binary(path: Path) -> io.BufferedReader:
    """The bytes of a file, without its compression if its name ends in `.zst`."""
    raw = _ZstdReader(path) if path.suffix == ZSTD_SUFFIX else io.FileIO(path)
    return io.BufferedReader(raw, READ_BYTES)


class _ZstdReader(io.RawIOBase):
    """What a file of Zstandard frames holds. Damage and a cut are refused."""

    def __init__(self, path: Path):
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                f"{path}: zstandard is needed to read it: pip install 'lmx[data]'"
            ) from None
        self._path, self._file = path, path.open("rb")
        self._make = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._error = zstandard.ZstdError
        self._ready = b""
        self._at = 0  # bytes that came out

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            raw = b"" if self._frame is None else self._frame.unused_data
            if self._frame is None or self._frame.eof:
                raw = raw or self._file.read(ZSTD_READ_BYTES)
                if not raw:
                    return 0
                self._frame = self._make()
            else:
                raw = self._file.read(ZSTD_READ_BYTES)
                if not raw:
                    raise self._damage_error("cut short")
            try:
                self._ready = self._frame.decompress(raw)
            except self._error as error:
                raise self._damage_error(f"damaged ({error})") from None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        self._at += size
        return size

    def _damage_error(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self._path}: {what} after byte {self._at} of what it holds, before byte"
            f" {self._file.tell()} of the file: take it from where it is whole."
        )


def _seek_line_start(file: io.BufferedReader, begin: int) -> int:
    """Goes to the first line that begins at or after `begin`; where that is."""
    if begin == 0:
        return 0
    file.seek(begin - 1)
    return begin - 1 + _skip_line(file)


def _skip_line(file: io.BufferedReader) -> int:
    """Reads up to and with the next newline; how many bytes that was."""
    size = 0
    while line := file.readline(READ_BYTES):
        size += len(line)
        if line.endswith(b"\n"):
            break
    return size


def _is_encodable(text: str) -> bool:
    """Whether every character of the text is one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
