"""Which documents are left out of a store, and why."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import Document


class Filter(ABC):
    """A rule for one document at a time: the same, whatever else there is."""

    @abstractmethod
    def __call__(self, document: Document) -> Document | str:
        """The document, perhaps another text of it; or why it is left out.

        Reasons are counted: they say nothing that only one document has.
        """


@configurable
@dataclass(frozen=True, kw_only=True)
class ByLength(Filter):
    """Documents of neither too few characters nor too many."""

    least: int = 1
    most: int | None = None

    def __post_init__(self):
        if self.most is not None and self.most < self.least:
            raise ConfigError(
                f"ByLength.least is {self.least} and ByLength.most {self.most}: no"
                " document would be kept."
            )

    def __call__(self, document: Document) -> Document | str:
        if len(document.text) < self.least:
            return f"fewer than {self.least} characters"
        if self.most is not None and len(document.text) > self.most:
            return f"more than {self.most} characters"
        return document
