"""Removal of duplicates, near duplicates and evaluation text, by word n-grams."""

import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.config.registry import Positive, PositiveFraction, check_fields, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus
from lmx.data.curate.document_pass import DocumentPass, DocumentWriter, read_valid
from lmx.data.optional import import_optional
from lmx.data.stateless_random import hash_u64

WORD = re.compile(r"\w+")
CACHED_WORDS = 2**20
BATCH_DOCUMENTS = 1000  # hashed at a time


def split_words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def hash_words(words: Sequence[str]) -> UInt64[np.ndarray, " _"]:
    """Returns a 64-bit hash of each word."""
    return np.fromiter(map(_hash_word, words), np.uint64, len(words))


@functools.lru_cache(CACHED_WORDS)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def hash_ngrams(
    hashes: UInt64[np.ndarray, " _"], ends: Int64[np.ndarray, " texts"], size: int
) -> tuple[UInt64[np.ndarray, " ngrams"], Int64[np.ndarray, " texts"]]:
    """Returns a hash of each n-gram of each text, and where those of each text end.

    `hashes` are of the words of all texts, and `ends` is where the words of each text
    end. A text of fewer words is one n-gram; a text without words has none.
    """
    lengths = np.diff(ends, prepend=0)
    counts = np.where(lengths == 0, 0, np.maximum(lengths - size + 1, 1))
    last = np.repeat(ends, counts)
    skipped = (lengths - counts).cumsum() - (lengths - counts)  # no n-gram starts there
    first = np.arange(counts.sum()) + np.repeat(skipped, counts)
    padded = np.append(hashes, np.uint64(0))  # the last for words that a text lacks
    places = (first + offset for offset in range(size))
    columns = [padded[np.where(place < last, place, -1)] for place in places]
    return hash_u64(*columns), counts.cumsum()


def hash_text(words: Sequence[str], size: int) -> UInt64[np.ndarray, " _"]:
    """Returns the hashes of the n-grams of one text, in order."""
    hashes = hash_words(words)
    return hash_ngrams(hashes, np.array([len(hashes)]), size)[0]


def hash_ngram_set(text: str, size: int) -> UInt64[np.ndarray, " _"]:
    """Returns the distinct n-gram hashes of one text, sorted."""
    return np.unique(hash_text(split_words(text), size))


def jaccard_index(
    one: UInt64[np.ndarray, " _"], other: UInt64[np.ndarray, " _"]
) -> float:
    """Returns intersection over union of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)


@configurable
@dataclass(frozen=True, kw_only=True)
class MinHash:
    """Finds candidate pairs of similar texts by locality-sensitive hashing.

    The signature of a text is the minimum of each of `bands` * `rows` hashes of its
    word n-grams. Two texts with Jaccard index s agree in some band, and become a
    candidate pair, with probability 1 - (1 - s**rows)**bands: by default 0.998 at 0.8,
    and 0.28 at 0.5. Broder 1997, doi:10.1109/SEQUEN.1997.666900; Leskovec et al. 2014,
    "Mining of Massive Datasets", section 3.4.

    Attributes:
        ngram_size: words per n-gram.
        seed: selects the hash functions.
    """

    ngram_size: Positive[int] = 5
    bands: Positive[int] = 21
    rows: Positive[int] = 6
    seed: int = 0

    def compute_signatures(self, texts: list[str]) -> UInt64[np.ndarray, "texts bands"]:
        """Returns one hash for each band of each text."""
        purpose = "to find near duplicates (not if Dedup.minhash is None)"
        rensa = import_optional("rensa", "data", purpose)
        words = [split_words(text) for text in texts]
        ends = np.cumsum([len(each) for each in words])
        hashes = hash_words(list(itertools.chain.from_iterable(words)))
        ngrams, ngram_ends = hash_ngrams(hashes, ends, self.ngram_size)
        offsets = np.concatenate([[0], ngram_ends]).astype(np.uint64)
        table = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            ngrams, offsets, self.bands * self.rows, self.seed
        )
        minima = np.array(table.to_rows(), np.uint64)
        minima = minima.reshape(len(texts), self.bands, self.rows)
        return hash_u64(np.arange(self.bands), *np.moveaxis(minima, 2, 0))


@configurable
@dataclass(frozen=True, kw_only=True)
class Dedup(DocumentPass):
    """Removes a document with the same or nearly the same text as an earlier one.

    Of near duplicates the first is kept: a document is removed if its Jaccard index
    with a kept one, of their word n-grams, is at least `threshold`. It is computed
    exactly for every candidate pair of `minhash`. Lee et al. 2022, arXiv:2107.06499,
    section 4.2.

    Attributes:
        minhash: finds candidate pairs; None removes byte-equal texts only.
    """

    sources: Mapping[str, Corpus]
    threshold: PositiveFraction[float] = 0.8
    minhash: MinHash | None = MinHash()

    def process(self, writer: DocumentWriter) -> None:
        shared_bands, index = self._find_shared_bands(), _KeptDocuments(self)
        first: dict[bytes, str] = {}
        for source, document in self.read_documents(writer):
            name, bands = f"{source}/{document.name}", next(shared_bands, [])
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            same = first.setdefault(digest, name)
            reason, match = "same text", (same, 1.0)
            if same is name:
                reason = "near duplicate"
                match = index.match_or_add(document.text, name, bands)
            if match:
                details = {"of": match[0], "similarity": match[1]}
                writer.remove(source, document.name, reason, **details)
            else:
                writer.keep(source, document)

    def _find_shared_bands(self) -> Iterator[list[int]]:
        """Yields, for each document in order, its bands that others have as well."""
        if self.minhash is None:
            return
        corpora = self.sources.values()
        texts = (document.text for c in corpora for document in read_valid(c))
        batches = [np.empty((0, self.minhash.bands), np.uint64)]
        while batch := list(itertools.islice(texts, BATCH_DOCUMENTS)):
            batches.append(self.minhash.compute_signatures(batch))
        _, bands, counts = np.unique(
            np.concatenate(batches), return_inverse=True, return_counts=True
        )
        for row in bands:
            yield row[counts[row] > 1].tolist()


class _KeptDocuments:
    """The kept documents that share a band with another document."""

    def __init__(self, dedup: Dedup):
        self._size = dedup.minhash.ngram_size if dedup.minhash else 0
        self._threshold = dedup.threshold
        self._ngrams: list[UInt64[np.ndarray, " _"]] = []
        self._names: list[str] = []
        self._members: dict[int, list[int]] = {}  # of each band, in order

    def match_or_add(
        self, text: str, name: str, bands: list[int]
    ) -> tuple[str, float] | None:
        """Returns the first near duplicate and its Jaccard index.

        Adds the document if there is none.
        """
        if not bands:
            return None
        own = hash_ngram_set(text, self._size)
        candidates = {n for band in bands for n in self._members.get(band, ())}
        for number in sorted(candidates):
            sizes = sorted((len(own), len(self._ngrams[number])))
            if sizes[0] < self._threshold * sizes[1]:
                continue  # the index is at most the ratio of the sizes
            similarity = jaccard_index(own, self._ngrams[number])
            if similarity >= self._threshold:
                return self._names[number], round(similarity, 4)
        for band in bands:
            self._members.setdefault(band, []).append(len(self._names))
        self._ngrams.append(own)
        self._names.append(name)
        return None


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
    ngram_size: Positive[int] = 13
    min_words: Positive[int] = 8

    def __post_init__(self):
        is_valid = 1 <= self.min_words <= self.ngram_size
        check_fields(
            self,
            against=(bool(self.against), "evaluations by their names"),
            min_words=(is_valid, f"1 to {self.ngram_size}, the ngram_size"),
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
