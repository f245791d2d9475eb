"""Documents that are there already: the same text, or nearly."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from lmx.config.names import ConfigError, configurable
from lmx.data.corpora.corpus import Corpus, Document
from lmx.data.curate.sieve import Sieve, Tray, every
from lmx.data.curate.words import alike, numbers, runs, runs_of, words
from lmx.data.keyed import hashed

BATCH = 1000  # documents that are hashed at a time
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

    words: int = 5
    bands: int = 21
    rows: int = 6
    seed: int = 0

    def __post_init__(self):
        for name in ("words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"MinHash.{name} is {getattr(self, name)}: at least 1."
                )

    def signatures(self, texts: list[str]) -> UInt64[np.ndarray, "texts bands"]:
        """One number for each band of each text."""
        rensa = _rensa()
        split = [words(text) for text in texts]
        ends = np.cumsum([len(each) for each in split])
        number = numbers(list(itertools.chain.from_iterable(split)))
        hashes, run_ends = runs(number, ends, self.words)
        table = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes,
            np.concatenate([[0], run_ends]).astype(np.uint64),
            self.bands * self.rows,
            self.seed,
        )
        least = np.array(table.to_rows(), np.uint64)
        least = least.reshape(len(texts), self.bands, self.rows)
        parts = [least[:, :, row] for row in range(self.rows)]
        return hashed(np.arange(self.bands), *parts)

    def groups(self, signatures: UInt64[np.ndarray, "texts bands"]) -> Groups:
        """The bands, by number, that each text has in common with another one."""
        _, band, size = np.unique(signatures, return_inverse=True, return_counts=True)
        shared = size[band] > 1
        return [row[here] for row, here in zip(band, shared, strict=True)]


@configurable
@dataclass(frozen=True, kw_only=True)
class Dedup(Sieve):
    """Removes a document whose text one before it has, or nearly.

    Of documents that are nearly alike the first stays: one goes only if it is at least
    `alike` to one that stays, by Jaccard's index of their runs of words, which is taken
    exactly of every pair that `near` finds. Lee et al. 2022, arXiv:2107.06499, section
    4.2.

    Attributes:
        near: finds those; None: only texts that are the same to the byte are removed.
    """

    sources: Mapping[str, Corpus]
    alike: float = 0.8
    near: MinHash | None = field(default_factory=MinHash)

    def __post_init__(self):
        if not 0 < self.alike <= 1:
            raise ConfigError(f"Dedup.alike is {self.alike}: above 0, and at most 1.")

    def sift(self, tray: Tray) -> None:
        groups = iter(self.near.groups(self._signatures()) if self.near else ())
        first: dict[bytes, str] = {}
        kept = _Kept(self.near.words if self.near else 0, self.alike)
        for source, document in self.documents(tray):
            here = next(groups, np.empty(0, np.int64))
            name = f"{source}/{document.name}"
            same = first.setdefault(_digest(document), name)
            if same is not name:
                tray.remove(source, document.name, "same text", of=same, alike=1.0)
            elif found := kept.like(document, name, here):
                of, how = found
                tray.remove(source, document.name, "near duplicate", of=of, alike=how)
            else:
                tray.keep(source, document)

    def _signatures(self) -> UInt64[np.ndarray, "texts bands"]:
        """Of all documents, in the order in which they are sifted."""
        assert self.near is not None
        found = [np.empty((0, self.near.bands), np.uint64)]
        texts = self._texts()
        while batch := list(itertools.islice(texts, BATCH)):
            found.append(self.near.signatures(batch))
        return np.concatenate(found)

    def _texts(self) -> Iterator[str]:
        for corpus in self.sources.values():
            for item in every(corpus):
                if isinstance(item, Document):
                    yield item.text


class _Kept:
    """The documents that stay and may have a near duplicate, by their groups."""

    def __init__(self, words: int, least: float):
        self.words, self.least = words, least
        self.runs: list[UInt64[np.ndarray, " _"]] = []
        self.names: list[str] = []
        self.members: dict[int, list[int]] = {}

    def like(
        self, document: Document, name: str, groups: Int64[np.ndarray, " _"]
    ) -> tuple[str, float] | None:
        """The first that stays and is alike enough, and how much. If there is none the
        document stays too.
        """
        if not len(groups):
            return None
        own = runs_of(document.text, self.words)
        near = {
            number
            for group in groups.tolist()
            for number in self.members.get(group, ())
        }
        for number in sorted(near):
            other = self.runs[number]
            if len(own) < self.least * len(other) or len(other) < self.least * len(own):
                continue  # too unlike in length
            if (how := alike(own, other)) >= self.least:
                return self.names[number], round(how, 4)
        for group in groups.tolist():
            self.members.setdefault(group, []).append(len(self.runs))
        self.runs.append(own)
        self.names.append(name)
        return None


def _digest(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode(), digest_size=16).digest()


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise ConfigError(
            "near duplicates are found with rensa, which is not here: pip install"
            " 'lmx[data]', or set Dedup.near=None to remove equal texts only."
        ) from None
    return rensa
