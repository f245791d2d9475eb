"""Documents that have in them what a model will be asked."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.config.registry import ConfigError, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.curate.document_pass import DocumentPass, DocumentWriter, read_all_splits
from lmx.data.curate.ngrams import hash_ngrams, hash_words, split_words


@configurable
@dataclass(frozen=True, kw_only=True)
class Decontaminate(DocumentPass):
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
    ngram_size: int = 13
    min_words: int = 8

    def __post_init__(self):
        if not self.against:
            raise ConfigError("Decontaminate.against names no evaluation.")
        if not 1 <= self.min_words <= self.ngram_size:
            raise ConfigError(
                f"Decontaminate.min_words is {self.min_words} and Decontaminate.ngram_size"
                f" {self.ngram_size}: at least 1, and no more than words."
            )

    def process(self, tray: DocumentWriter) -> None:
        asked = _NgramIndex(self)
        for source, document in self.read_documents(tray):
            if found := asked.find(document):
                where, shared = found
                reason = f"shares words with {where.split('/')[0]}"
                tray.remove(source, document.name, reason, of=where, words=shared)
            else:
                tray.keep(source, document)


class _NgramIndex:
    """The runs of words of all evaluations."""

    def __init__(self, wanted: Decontaminate):
        by_size: dict[int, dict[int, str]] = {}
        short = 0
        for name, corpus in wanted.against.items():
            for item in read_all_splits(corpus):
                if not isinstance(item, Document):
                    continue
                number = hash_words(split_words(item.text))
                size = min(len(number), wanted.ngram_size)
                if size < wanted.min_words:
                    short += 1
                    continue
                known = by_size.setdefault(size, {})
                for run in _hash_text(number, size).tolist():
                    known.setdefault(run, f"{name}/{item.name}")
        if short:
            print_line(
                f"{short:,} texts of fewer than {wanted.min_words} words are not looked for"
            )
        self.sizes = by_size
        self.sorted = {
            size: np.array(sorted(known), np.uint64) for size, known in by_size.items()
        }

    def find(self, document: Document) -> tuple[str, str] | None:
        """The first text that shares a run with the document, and the words of it."""
        split = split_words(document.text)
        number = hash_words(split)
        for size, known in self.sorted.items():
            if len(number) < size:
                continue
            own = _hash_text(number, size)
            hits: Int64[np.ndarray, " _"] = np.flatnonzero(np.isin(own, known))
            if len(hits):
                first = int(hits[0])
                where = self.sizes[size][int(own[first])]
                return where, " ".join(split[first : first + size])
        return None


def _hash_text(number: UInt64[np.ndarray, " _"], size: int) -> UInt64[np.ndarray, " _"]:
    """The runs of one text, in order."""
    return hash_ngrams(number, np.array([len(number)]), size)[0]
