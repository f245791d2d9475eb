"""A text as its tokens come, up to one of the texts that stop it."""

from collections.abc import Collection
from typing import SupportsIndex

from lmx.config.names import ConfigError
from lmx.data.tokenizer import Codec


class Telling:
    """Takes tokens one by one; what it has told never has to be taken back.

    A stop text may begin in one token and end in another, and is not told.

    Attributes:
        over: whether a stop text has come, after which nothing is told.
    """

    def __init__(self, codec: Codec, stops: Collection[str] = ()):
        if "" in stops:
            raise ConfigError("a stop text must have a character or more.")
        self.over = False
        self._decoder, self._stops = codec.stream(), stops
        self._held = ""  # perhaps the beginning of a stop text

    def __call__(self, token: SupportsIndex) -> str:
        """The text that this token makes certain."""
        return self._told(self._decoder(token))

    def rest(self) -> str:
        """What stays when no token will come."""
        told = self._told(self._decoder.rest())
        held, self._held = self._held, ""
        return told + held

    def _told(self, new: str) -> str:
        if self.over:
            return ""
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.over, self._held = True, ""
            return text[: min(found)]
        held = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of the text are the first of the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
