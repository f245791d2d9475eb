"""Documents that have in them what a model will be asked."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import Corpus, Document
from lmx.data.curate.sieve import Sieve, Tray, every
from lmx.data.curate.words import numbers, runs, words
from lmx.data.progress import say


@configurable
@dataclass(frozen=True, kw_only=True)
class Decontaminate(Sieve):
    """Removes a document that shares a run of words with an evaluation.

    An evaluation's text of fewer words is looked for whole, if it has `least`; one of
    fewer still is not looked for, and their number is said. Brown et al. 2020,
    arXiv:2005.14165, appendix C.

    Attributes:
        against: evaluations by name.
        words: in a run.
    """

    sources: Mapping[str, Corpus]
    against: Mapping[str, Corpus]
    words: int = 13
    least: int = 8

    def __post_init__(self):
        if not self.against:
            raise ConfigError("Decontaminate.against names no evaluation.")
        if not 1 <= self.least <= self.words:
            raise ConfigError(
                f"Decontaminate.least is {self.least} and Decontaminate.words"
                f" {self.words}: at least 1, and no more than words."
            )

    def sift(self, tray: Tray) -> None:
        asked = _Asked(self)
        for source, document in self.documents(tray):
            if found := asked.within(document):
                where, shared = found
                reason = f"shares words with {where.split('/')[0]}"
                tray.remove(source, document.name, reason, of=where, words=shared)
            else:
                tray.keep(source, document)


class _Asked:
    """The runs of words of all evaluations."""

    def __init__(self, wanted: Decontaminate):
        by_size: dict[int, dict[int, str]] = {}
        short = 0
        for name, corpus in wanted.against.items():
            for item in every(corpus):
                if not isinstance(item, Document):
                    continue
                number = numbers(words(item.text))
                size = min(len(number), wanted.words)
                if size < wanted.least:
                    short += 1
                    continue
                known = by_size.setdefault(size, {})
                for run in _runs(number, size).tolist():
                    known.setdefault(run, f"{name}/{item.name}")
        if short:
            say(
                f"{short:,} texts of fewer than {wanted.least} words are not looked for"
            )
        self.sizes = by_size
        self.sorted = {
            size: np.array(sorted(known), np.uint64) for size, known in by_size.items()
        }

    def within(self, document: Document) -> tuple[str, str] | None:
        """The first text that shares a run with the document, and the words of it."""
        split = words(document.text)
        number = numbers(split)
        for size, known in self.sorted.items():
            if len(number) < size:
                continue
            own = _runs(number, size)
            hits: Int64[np.ndarray, " _"] = np.flatnonzero(np.isin(own, known))
            if len(hits):
                first = int(hits[0])
                where = self.sizes[size][int(own[first])]
                return where, " ".join(split[first : first + size])
        return None


def _runs(number: UInt64[np.ndarray, " _"], size: int) -> UInt64[np.ndarray, " _"]:
    """The runs of one text, in order."""
    return runs(number, np.array([len(number)]), size)[0]
