"""Filters of single documents, and a pass that applies them to corpora."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.curate.document_pass import EMPTY_REASON, DocumentPass, DocumentWriter


class Filter(ABC):
    """A rule that depends on one document only."""

    @abstractmethod
    def __call__(self, document: Document) -> Document | str:
        """Returns the document, perhaps with changed text, or why it is removed.

        Reasons are counted, so they must not contain details of the document.
        """


def apply_filters(
    filters: Sequence[Filter], document: Document
) -> tuple[Document | str, list[str]]:
    """Applies filters in order. Also returns the names of those that changed it."""
    changes = []
    for rule in filters:
        result = rule(document)
        if isinstance(result, str):
            return result, []
        if result.text != document.text:
            changes.append(type(rule).__name__)
        document = result
    return document if document.text else EMPTY_REASON, changes


@configurable
@dataclass(frozen=True, kw_only=True)
class LengthFilter(Filter):
    """Removes documents with too few or too many characters."""

    min_chars: int = 1
    max_chars: int | None = None

    def __post_init__(self):
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ConfigError(
                f"LengthFilter.min_chars is {self.min_chars} and LengthFilter.max_chars"
                f" {self.max_chars}: no document would be kept."
            )

    def __call__(self, document: Document) -> Document | str:
        if len(document.text) < self.min_chars:
            return f"fewer than {self.min_chars} characters"
        if self.max_chars is not None and len(document.text) > self.max_chars:
            return f"more than {self.max_chars} characters"
        return document


@configurable
@dataclass(frozen=True, kw_only=True)
class FilterDocuments(DocumentPass):
    """Applies filters in order, and writes the documents that are left."""

    sources: Mapping[str, Corpus]
    filters: tuple[Filter, ...]

    def __post_init__(self):
        if not self.filters:
            raise ConfigError(
                "FilterDocuments.filters is empty: [@Gopher(), @GopherRepetition()]"
            )

    def process(self, writer: DocumentWriter) -> None:
        for source, document in self.read_documents(writer):
            result, changes = apply_filters(self.filters, document)
            if isinstance(result, str):
                writer.remove(source, document.name, result)
                continue
            for change in changes:
                writer.record_change(source, document.name, change)
            writer.keep(source, result)
