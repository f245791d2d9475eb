"""A text as its tokens come, up to one of the texts that stop it."""

from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import Tokenizer


class StopStringFilter:
    """Takes tokens one by one; what it has told never has to be taken back.

    A stop text may begin in one token and end in another, and is not told.

    Attributes:
        over: whether a stop text has come, after which nothing is told or kept.
        text: what has been told.
        tokens: those it came in, the one that ended it with them.
        logprobs: theirs.
    """

    def __init__(self, codec: Tokenizer, stops: Collection[str] = ()):
        if "" in stops:
            raise ConfigError("a stop text must have a character or more.")
        self.stopped, self.text = False, ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._decoder, self._stops = codec.stream(), stops
        self._pending = ""  # perhaps the beginning of a stop text

    def __call__(self, token: SupportsIndex, logprob: SupportsFloat = 0.0) -> str:
        """The text that this token makes certain."""
        if self.stopped:
            return ""
        self.tokens.append(int(token))
        self.logprobs.append(float(logprob))
        return self._emit(self._decoder(token))

    def flush(self) -> str:
        """What stays when no token will come."""
        told = "" if self.stopped else self._emit(self._decoder.flush())
        return told + self._release(len(self._pending))

    def _emit(self, new: str) -> str:
        self._pending += new
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped, self._pending = True, self._pending[: min(found)]
            return self._release(len(self._pending))
        kept = max(
            (_count_overlap(self._pending, stop) for stop in self._stops), default=0
        )
        return self._release(len(self._pending) - kept)

    def _release(self, characters: int) -> str:
        """So many of the characters that were held."""
        told, self._pending = self._pending[:characters], self._pending[characters:]
        self.text += told
        return told


def _count_overlap(text: str, stop: str) -> int:
    """How many of the last characters of the text are the first of the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
