"""Progress bars and lines on stderr, and tables of text."""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

BAR_DELAY = 1.0  # seconds before a bar appears
LINE_INTERVAL = 10.0  # seconds between lines without a terminal
WRITE_ERRORS = (OSError, ValueError)  # the latter of closed streams and encodings


def byte_progress(title: str, total: int | None = None) -> "tqdm":
    """A progress bar of bytes on a terminal; nothing elsewhere."""
    from tqdm import tqdm  # layers and models import without it

    return tqdm(
        desc=title,
        total=total,
        unit="B",
        unit_scale=True,
        delay=BAR_DELAY,
        disable=not sys.stderr.isatty(),
    )


def print_line(text: str, file: Any = None) -> None:
    """Prints a line on stderr, or a file, above any progress bar; never fails."""
    from tqdm import tqdm

    with contextlib.suppress(*WRITE_ERRORS):
        tqdm.write(text, file=file or sys.stderr)


@functools.cache
def print_once(text: str) -> None:
    """Prints a line on stderr the first time in this process."""
    print_line(text)


@contextlib.contextmanager
def warn_on_error(action: str) -> Iterator[None]:
    """Reports an exception in what only shows something, and continues after it."""
    try:
        yield
    except Exception as error:
        print_line(f"warning: cannot {action}: {type(error).__name__}: {error}")


class SafeStream:
    """A text stream for which a failed write is no exception, but its `error`.

    Nothing is lost for the reader of a pipe who went away: that is no `error`.
    Characters that the encoding does not have are escaped.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: Exception | None = None
        if isinstance(stream, io.TextIOWrapper):
            self._try(lambda: stream.reconfigure(errors="backslashreplace"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes the text, or sets `error`."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, or sets `error`."""
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            pass
        except WRITE_ERRORS as error:
            self.error = error

    def finish(self) -> None:
        """Discards what cannot be written, at which Python would fail when it exits."""
        with contextlib.suppress(*WRITE_ERRORS):
            try:
                self.stream.flush()
            except OSError:
                with open(os.devnull, "w") as null:
                    os.dup2(null.fileno(), self.stream.fileno())


@contextlib.contextmanager
def protect_output() -> Iterator[SafeStream]:
    """Lets no write to stdout, which is returned, or stderr raise an exception.

    Opens those of the descriptors 0 to 2 that are closed, which would else become those
    of the next files.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # `open` returns the lowest that is free
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    streams = (sys.stdout or open(1, "w"), sys.stderr or open(2, "w"))
    output, errors = map(SafeStream, streams)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield output
        finally:
            output.finish()
            errors.finish()


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> str:
    """Columns under a header, the first `left` aligned left, the others right."""
    lines = [list(header), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [f"{{:{'<' if n < left else '>'}{w}}}" for n, w in enumerate(widths)]
    return "\n".join("  ".join(cells).format(*line).rstrip() for line in lines)
