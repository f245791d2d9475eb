"""How far the building of a store has come, on stderr."""

import sys
import time
from types import TracebackType

from lmx.core import console
from lmx.data.store.shard_writer import ShardProgress


class BuildProgress:
    """A bar on a terminal, and now and then a line elsewhere: documents, MB/s, tokens/s
    and the time left. What takes less than a second says nothing.
    """

    def __init__(self, title: str, total: int, done: int):
        """`total` bytes are expected, and `done` of them were there before."""
        self._title, self._total, self._known = title, total, done
        self._pieces: dict[int, ShardProgress] = {}
        self._came: dict[int, int] = {}  # bytes, of what was expected of each piece
        self._began = self._said = time.monotonic()
        self._bar = console.byte_progress(title, total)

    def __enter__(self) -> "BuildProgress":
        self._bar.update(self._known)
        self._bar.unpause()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, word: ShardProgress, expected: int) -> None:
        """Takes in how far a piece has come of which so many bytes were expected."""
        self._pieces[word.shard] = word
        came = expected if word.done else min(word.bytes, expected)
        self._bar.set_postfix_str(self._format_rates(), refresh=False)
        self._bar.update(came - self._came.get(word.shard, 0))
        self._came[word.shard] = came
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._said > console.LINE_INTERVAL:
            self._said = now
            console.print_line(
                f"{self._title}: {self._format_rates()}, {self._format_time_left()}"
            )

    def _format_rates(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        documents, size, tokens = (
            sum(getattr(word, name) for word in self._pieces.values())
            for name in ("documents", "bytes", "tokens")
        )
        return (
            f"{documents:,} documents, {size / 1e6 / seconds:.1f} MB/s,"
            f" {tokens / seconds:,.0f} tokens/s"
        )

    def _format_time_left(self) -> str:
        """The time left, if the rest goes as what went since the start."""
        came = sum(self._came.values())
        if not came:
            return "time left unknown"
        rest = self._total - self._known - came
        seconds = (time.monotonic() - self._began) * rest / came
        return f"{seconds / 60:.0f} minutes left"
