"""Documents that are there already: the same text, or nearly."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.config.registry import ConfigError, configurable
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.curate.document_pass import DocumentPass, DocumentWriter, read_all_splits
from lmx.data.curate.ngrams import (
    hash_ngram_set,
    hash_ngrams,
    hash_words,
    jaccard_index,
    split_words,
)
from lmx.data.stateless_random import hash_u64

BATCH_DOCUMENTS = 1000  # documents that are hashed at a time
Groups = list[Int64[np.ndarray, " _"]]  # of each document: those that it is in


@configurable
@dataclass(frozen=True, kw_only=True)
class MinHash:
    """Finds pairs of texts that are likely alike, among all pairs there are.

    The least of each of `bands` * `rows` hashes of a text's runs of words is its
    signature. Two texts of Jaccard index s agree in a whole band, and are looked at,
    with chance 1 - (1 - s**rows)**bands: by default 0.998 at 0.8, and 0.28 at 0.5.
    Broder 1997, doi:10.1109/SEQUEN.1997.666900; Leskovec et al. 2014, "Mining of
    Massive Datasets", section 3.4.

    Attributes:
        words: in a run.
        seed: of the hashes.
    """

    ngram_size: int = 5
    bands: int = 21
    rows: int = 6
    seed: int = 0

    def __post_init__(self):
        for name in ("ngram_size", "bands", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"MinHash.{name} is {getattr(self, name)}: at least 1."
                )

    def compute_signatures(self, texts: list[str]) -> UInt64[np.ndarray, "texts bands"]:
        """One number for each band of each text."""
        rensa = _import_rensa()
        split = [split_words(text) for text in texts]
        ends = np.cumsum([len(each) for each in split])
        number = hash_words(list(itertools.chain.from_iterable(split)))
        hashes, run_ends = hash_ngrams(number, ends, self.ngram_size)
        table = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes,
            np.concatenate([[0], run_ends]).astype(np.uint64),
            self.bands * self.rows,
            self.seed,
        )
        least = np.array(table.to_rows(), np.uint64)
        least = least.reshape(len(texts), self.bands, self.rows)
        parts = [least[:, :, row] for row in range(self.rows)]
        return hash_u64(np.arange(self.bands), *parts)

    def group_by_band(self, signatures: UInt64[np.ndarray, "texts bands"]) -> Groups:
        """The bands, by number, that each text has in common with another one."""
        _, band, size = np.unique(signatures, return_inverse=True, return_counts=True)
        shared = size[band] > 1
        return [row[here] for row, here in zip(band, shared, strict=True)]


@configurable
@dataclass(frozen=True, kw_only=True)
class Dedup(DocumentPass):
    """Removes a document whose text one before it has, or nearly.

    Of documents that are nearly alike the first stays: one goes only if it is at least
    `alike` to one that stays, by Jaccard's index of their runs of words, which is taken
    exactly of every pair that `near` finds. Lee et al. 2022, arXiv:2107.06499, section
    4.2.

    Attributes:
        near: finds those; None: only texts that are the same to the byte are removed.
    """

    sources: Mapping[str, Corpus]
    threshold: float = 0.8
    minhash: MinHash | None = field(default_factory=MinHash)

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                f"Dedup.threshold is {self.threshold}: above 0, and at most 1."
            )

    def process(self, tray: DocumentWriter) -> None:
        groups = iter(
            self.minhash.group_by_band(self._compute_signatures())
            if self.minhash
            else ()
        )
        first: dict[bytes, str] = {}
        kept = _KeptDocuments(
            self.minhash.ngram_size if self.minhash else 0, self.threshold
        )
        for source, document in self.read_documents(tray):
            here = next(groups, np.empty(0, np.int64))
            name = f"{source}/{document.name}"
            same = first.setdefault(_hash_text(document), name)
            if same is not name:
                tray.remove(source, document.name, "same text", of=same, threshold=1.0)
            elif found := kept.match_or_add(document, name, here):
                of, how = found
                tray.remove(
                    source, document.name, "near duplicate", of=of, threshold=how
                )
            else:
                tray.keep(source, document)

    def _compute_signatures(self) -> UInt64[np.ndarray, "texts bands"]:
        """Of all documents, in the order in which they are sifted."""
        assert self.minhash is not None
        found = [np.empty((0, self.minhash.bands), np.uint64)]
        texts = self._read_texts()
        while batch := list(itertools.islice(texts, BATCH_DOCUMENTS)):
            found.append(self.minhash.compute_signatures(batch))
        return np.concatenate(found)

    def _read_texts(self) -> Iterator[str]:
        for corpus in self.sources.values():
            for item in read_all_splits(corpus):
                if isinstance(item, Document):
                    yield item.text


class _KeptDocuments:
    """The documents that stay and may have a near duplicate, by their groups."""

    def __init__(self, words: int, least: float):
        self.words, self.least = words, least
        self.runs: list[UInt64[np.ndarray, " _"]] = []
        self.names: list[str] = []
        self.members: dict[int, list[int]] = {}

    def match_or_add(
        self, document: Document, name: str, groups: Int64[np.ndarray, " _"]
    ) -> tuple[str, float] | None:
        """The first that stays and is alike enough, and how much. If there is none the
        document stays too.
        """
        if not len(groups):
            return None
        own = hash_ngram_set(document.text, self.words)
        near = {
            number
            for group in groups.tolist()
            for number in self.members.get(group, ())
        }
        for number in sorted(near):
            other = self.runs[number]
            if len(own) < self.least * len(other) or len(other) < self.least * len(own):
                continue  # too unlike in length
            if (how := jaccard_index(own, other)) >= self.least:
                return self.names[number], round(how, 4)
        for group in groups.tolist():
            self.members.setdefault(group, []).append(len(self.runs))
        self.runs.append(own)
        self.names.append(name)
        return None


def _hash_text(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode(), digest_size=16).digest()


def _import_rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise ConfigError(
            "near duplicates are found with rensa, which is not here: pip install"
            " 'lmx[data]', or set Dedup.minhash=None to remove equal texts only."
        ) from None
    return rensa
