"""Which documents are left out of a store, and why."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Document


class Filter(ABC):
    """A rule for one document at a time: the same, whatever else there is."""

    @abstractmethod
    def __call__(self, document: Document) -> Document | str:
        """The document, perhaps another text of it; or why it is left out.

        Reasons are counted: they say nothing that only one document has.
        """


@configurable
@dataclass(frozen=True, kw_only=True)
class LengthFilter(Filter):
    """Documents of neither too few characters nor too many."""

    min_chars: int = 1
    max_chars: int | None = None

    def __post_init__(self):
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ConfigError(
                f"LengthFilter.min_chars is {self.min_chars} and LengthFilter.max_chars {self.max_chars}: no"
                " document would be kept."
            )

    def __call__(self, document: Document) -> Document | str:
        if len(document.text) < self.min_chars:
            return f"fewer than {self.min_chars} characters"
        if self.max_chars is not None and len(document.text) > self.max_chars:
            return f"more than {self.max_chars} characters"
        return document
