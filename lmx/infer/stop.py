"""Streams decoded text up to the first stop string."""

from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex

from lmx.config.registry import require
from lmx.data.tokenizer.base import Tokenizer


class StopStringFilter:
    """Decodes tokens one by one; text once returned is final.

    A stop string may start in one token and end in another. It is not returned.

    Attributes:
        stopped: whether a stop string was found; later tokens are ignored.
        text: all text returned so far.
        tokens: all tokens so far, the last one of the stop string included.
        logprobs: their log-probabilities.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Collection[str] = ()):
        require("" not in stops, "a stop string must have at least one character.")
        self.stopped, self.text, self.stops = False, "", stops
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._decoder = tokenizer.stream()
        self._pending = ""  # it may be the start of a stop string

    def __call__(self, token: SupportsIndex, logprob: SupportsFloat = 0.0) -> str:
        """Adds a token. Returns the text that is now final."""
        if self.stopped:
            return ""
        self.tokens.append(int(token))
        self.logprobs.append(float(logprob))
        return self._add(self._decoder(token))

    def flush(self) -> str:
        """Returns the remaining text after the last token."""
        text = "" if self.stopped else self._add(self._decoder.flush())
        return text + self._release(0)

    def _add(self, text: str) -> str:
        self._pending += text
        found = [at for stop in self.stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped, self._pending = True, self._pending[: min(found)]
            return self._release(0)
        overlaps = (count_overlap(self._pending, stop) for stop in self.stops)
        return self._release(max(overlaps, default=0))

    def _release(self, keep: int) -> str:
        """Returns the pending text without its last characters."""
        end = len(self._pending) - keep
        text, self._pending = self._pending[:end], self._pending[end:]
        self.text += text
        return text


def count_overlap(text: str, stop: str) -> int:
    """The most characters at the end of the text that are the start of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
