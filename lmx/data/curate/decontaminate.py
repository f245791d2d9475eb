"""Removal of documents that contain text of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmx.config.registry import ConfigError, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus
from lmx.data.curate.dedup import hash_text, split_words
from lmx.data.curate.document_pass import DocumentPass, DocumentWriter, read_valid


@configurable
@dataclass(frozen=True, kw_only=True)
class Decontaminate(DocumentPass):
    """Removes a document that shares a word n-gram with an evaluation.

    A text of an evaluation with fewer than `ngram_size` words is matched as a whole if
    it has at least `min_words`; the number of shorter texts, which are ignored, is
    printed. Brown et al. 2020, arXiv:2005.14165, appendix C.

    Attributes:
        against: evaluations by name.
        ngram_size: words per n-gram.
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
                f"Decontaminate.min_words is {self.min_words} and"
                f" Decontaminate.ngram_size {self.ngram_size}: at least 1, and at most"
                " ngram_size."
            )

    def process(self, writer: DocumentWriter) -> None:
        index = self._index_evaluations()
        arrays = {size: np.fromiter(index[size], np.uint64) for size in index}
        for source, document in self.read_documents(writer):
            words = split_words(document.text)
            for size, known in arrays.items():
                own = hash_text(words, size) if len(words) >= size else known[:0]
                hits = np.flatnonzero(np.isin(own, known)).tolist()
                if hits:
                    name = index[size][int(own[hits[0]])]
                    details = {"of": name, "words": " ".join(words[hits[0] :][:size])}
                    reason = f"shares words with {name.split('/')[0]}"
                    writer.remove(source, document.name, reason, **details)
                    break
            else:
                writer.keep(source, document)

    def _index_evaluations(self) -> dict[int, dict[int, str]]:
        """Returns the names of texts by n-gram size and hash. Reports short texts."""
        index: dict[int, dict[int, str]] = {}
        short = 0
        for name, corpus in self.against.items():
            for document in read_valid(corpus):
                words = split_words(document.text)
                size = min(len(words), self.ngram_size)
                if size < self.min_words:
                    short += 1
                    continue
                for ngram in hash_text(words, size).tolist():
                    names = index.setdefault(size, {})
                    names.setdefault(ngram, f"{name}/{document.name}")
        if short:
            print_line(
                f"{short:,} texts of fewer than {self.min_words} words are ignored"
            )
        return index
