"""Documents through rules, one after the other, and what each rule took."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Corpus
from lmx.data.curate.document_pass import EMPTY_REASON, DocumentPass, DocumentWriter
from lmx.data.curate.filter import Filter


@configurable
@dataclass(frozen=True, kw_only=True)
class FilterDocuments(DocumentPass):
    """Removes what a rule refuses, and writes what rules make of the rest.

    Each rule sees what those before it left.
    """

    sources: Mapping[str, Corpus]
    filters: tuple[Filter, ...]

    def __post_init__(self):
        if not self.filters:
            raise ConfigError(
                "FilterDocuments.filters names no rule: [@Gopher(), @GopherRepetition()]"
            )

    def process(self, tray: DocumentWriter) -> None:
        for source, document in self.read_documents(tray):
            changes = []
            for rule in self.filters:
                found = rule(document)
                if isinstance(found, str):
                    tray.remove(source, document.name, found)
                    break
                if found.text != document.text:
                    changes.append(type(rule).__name__)
                document = found
            else:
                if not document.text:
                    tray.remove(source, document.name, EMPTY_REASON)
                    continue
                for how in changes:
                    tray.record_change(source, document.name, how)
                tray.keep(source, document)
