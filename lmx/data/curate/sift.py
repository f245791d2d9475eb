"""Documents through rules, one after the other, and what each rule took."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import Corpus
from lmx.data.curate.sieve import EMPTY, Sieve, Tray
from lmx.data.store.filter import Filter


@configurable
@dataclass(frozen=True, kw_only=True)
class Sift(Sieve):
    """Removes what a rule refuses, and writes what rules make of the rest.

    Each rule sees what those before it left.
    """

    sources: Mapping[str, Corpus]
    rules: tuple[Filter, ...]

    def __post_init__(self):
        if not self.rules:
            raise ConfigError("Sift.rules names no rule: [@Gopher(), @Repetition()]")

    def sift(self, tray: Tray) -> None:
        for source, document in self.documents(tray):
            changes = []
            for rule in self.rules:
                found = rule(document)
                if isinstance(found, str):
                    tray.remove(source, document.name, found)
                    break
                if found.text != document.text:
                    changes.append(type(rule).__name__)
                document = found
            else:
                if not document.text:
                    tray.remove(source, document.name, EMPTY)
                    continue
                for how in changes:
                    tray.change(source, document.name, how)
                tray.keep(source, document)
