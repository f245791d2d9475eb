"""Filters of single documents, and a pass that applies them to corpora."""

import ipaddress
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmx.config.registry import (
    Fraction,
    NonNegative,
    OpenFraction,
    check_fields,
    configurable,
    require,
)
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.curate.document_pass import (
    EMPTY_REASON,
    DocumentPass,
    DocumentWriter,
    read_valid,
)
from lmx.data.optional import import_optional

STOP_WORDS = frozenset("the be to of and that have with".split())
BULLET = re.compile(r"\s*[•‣◦⁃∙*-]")
ELLIPSIS = ("...", "…")
MIN_TOP_NGRAM, MIN_DUPLICATE_NGRAM = 2, 5  # words
SENTENCE_ENDS = (".", "!", "?", "…", '"', "'", "”", "’", "。", "！", "？")
# A dot-atom at a domain of at least two labels, the last one of letters: the common
# part of RFC 5322, section 3.4.1.
EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
# Candidates for addresses of IPv4 or IPv6, which `ipaddress` then parses.
IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]{2,39})(?![\w:]|\.\d)"
)
HASH_FEATURES = 2**18  # of words and word pairs
FOLDS = 5  # of cross-validation


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

    min_chars: NonNegative[int] = 1
    max_chars: NonNegative[int | None] = None

    def __post_init__(self):
        is_valid = self.max_chars is None or self.max_chars >= self.min_chars
        rule = f"at least min_chars, {self.min_chars}"
        check_fields(self, max_chars=(is_valid, rule))

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
        rule = "some filters, as in [@Gopher(), @GopherRepetition()]"
        check_fields(self, filters=(bool(self.filters), rule))

    def process(self, writer: DocumentWriter) -> None:
        for source, document in self.read_documents(writer):
            result, changes = apply_filters(self.filters, document)
            if isinstance(result, str):
                writer.remove(source, document.name, result)
                continue
            for change in changes:
                writer.record_change(source, document.name, change)
            writer.keep(source, result)


@configurable
@dataclass(frozen=True, kw_only=True)
class Gopher(Filter):
    """Keeps English prose of sufficient length.

    Rae et al. 2021, arXiv:2112.11446, appendix A.1.

    Attributes:
        max_symbol_ratio: hash signs, or ellipses, per word.
        max_bullet_lines, max_ellipsis_lines: fraction of lines that begin with a
            bullet, or end with an ellipsis.
        min_alphabetic_words: fraction of words with a letter.
        min_stop_words: different words of eight frequent English words.
    """

    min_words: NonNegative[int] = 50
    max_words: NonNegative[int] = 100_000
    min_word_length: NonNegative[float] = 3.0  # characters, on average
    max_word_length: NonNegative[float] = 10.0
    max_symbol_ratio: NonNegative[float] = 0.1
    max_bullet_lines: Fraction[float] = 0.9
    max_ellipsis_lines: Fraction[float] = 0.3
    min_alphabetic_words: Fraction[float] = 0.8
    min_stop_words: NonNegative[int] = 2

    def __call__(self, document: Document) -> Document | str:
        text = document.text
        words, lines = text.split(), text.splitlines() or [""]
        count = max(len(words), 1)
        length = sum(map(len, words)) / count
        bullets = sum(bool(BULLET.match(line)) for line in lines) / len(lines)
        trailing = sum(line.rstrip().endswith(ELLIPSIS) for line in lines) / len(lines)
        ellipses = sum(map(text.count, ELLIPSIS)) / count
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / count
        violations = {
            f"fewer than {self.min_words} words": len(words) < self.min_words,
            f"more than {self.max_words} words": len(words) > self.max_words,
            "short words": length < self.min_word_length,
            "long words": length > self.max_word_length,
            "many hash signs": text.count("#") / count > self.max_symbol_ratio,
            "many ellipses": ellipses > self.max_symbol_ratio,
            "lines that begin with a bullet": bullets > self.max_bullet_lines,
            "lines that end with an ellipsis": trailing > self.max_ellipsis_lines,
            "few words with a letter": alphabetic < self.min_alphabetic_words,
            "few stop words": len(STOP_WORDS & set(words)) < self.min_stop_words,
        }
        reasons = (f"Gopher: {reason}" for reason, holds in violations.items() if holds)
        return next(reasons, document)


@configurable
@dataclass(frozen=True, kw_only=True)
class GopherRepetition(Filter):
    """Removes repetitive text: repeated lines, paragraphs and word n-grams.

    A line or n-gram is a duplicate if it is not its first occurrence; fractions of
    characters are of all characters of the text. Rae et al. 2021, arXiv:2112.11446,
    appendix A.1, table A1.

    Attributes:
        max_duplicate_lines, max_duplicate_paragraphs: fraction that are duplicates.
        max_duplicate_line_chars, max_duplicate_paragraph_chars: the same in characters.
        max_top_ngram_chars: fraction of characters in the most frequent 2-, 3- and
            4-gram.
        max_duplicate_ngram_chars: fraction in duplicate 5-, 6-, ... and 10-grams.
    """

    max_duplicate_lines: Fraction[float] = 0.3
    max_duplicate_paragraphs: Fraction[float] = 0.3
    max_duplicate_line_chars: Fraction[float] = 0.2
    max_duplicate_paragraph_chars: Fraction[float] = 0.2
    max_top_ngram_chars: Fraction[tuple[float, ...]] = (0.20, 0.18, 0.16)
    max_duplicate_ngram_chars: Fraction[tuple[float, ...]] = (
        0.15, 0.14, 0.13, 0.12, 0.11, 0.10,
    )  # fmt: skip

    def __call__(self, document: Document) -> Document | str:
        reason = self._check_lines(document.text) or self._check_ngrams(document.text)
        return f"GopherRepetition: {reason}" if reason else document

    def _check_lines(self, text: str) -> str | None:
        line_limits = self.max_duplicate_lines, self.max_duplicate_line_chars
        limits = self.max_duplicate_paragraphs, self.max_duplicate_paragraph_chars
        for name, separator, (max_parts, max_chars) in (
            ("lines", "\n+", line_limits),
            ("paragraphs", "\n\n+", limits),
        ):
            parts = [part for part in re.split(separator, text.strip()) if part]
            duplicates = find_duplicates(parts)
            if len(duplicates) > max_parts * len(parts):
                return f"duplicate {name}"
            if sum(map(len, duplicates)) > max_chars * len(text):
                return f"characters in duplicate {name}"
        return None

    def _check_ngrams(self, text: str) -> str | None:
        words = text.split()
        for size, limit in enumerate(self.max_top_ngram_chars, MIN_TOP_NGRAM):
            ngrams = Counter(zip(*(words[i:] for i in range(size)), strict=False))
            top, count = max(ngrams.items(), key=lambda item: item[1], default=((), 0))
            if count > 1 and count * len("".join(top)) > limit * len(text):
                return f"characters in one {size}-gram"
        for size, limit in enumerate(
            self.max_duplicate_ngram_chars, MIN_DUPLICATE_NGRAM
        ):
            if count_repeated_chars(words, size) > limit * len(text):
                return f"characters in duplicate {size}-grams"
        return None


def find_duplicates(parts: Sequence[str]) -> list[str]:
    """Returns the parts that are not the first of their kind, grouped."""
    return list((Counter(parts) - Counter(set(parts))).elements())


def count_repeated_chars(words: Sequence[str], size: int) -> int:
    """Counts the characters of words in repeated n-grams, each word once."""
    seen: set[Hashable] = set()
    total = end = 0  # words before `end` are counted
    for begin in range(len(words) - size + 1):
        ngram = tuple(words[begin : begin + size])
        if ngram in seen:
            total += sum(map(len, words[max(begin, end) : begin + size]))
            end = begin + size
        seen.add(ngram)
    return total


@configurable
@dataclass(frozen=True, kw_only=True)
class FineWeb(Filter):
    """Keeps text whose lines are sentences, unlike menus and lists.

    Penedo et al. 2024, arXiv:2406.17557, section 3.6.

    Attributes:
        min_ended_lines: fraction of lines that end like a sentence.
        max_duplicate_chars: fraction of characters in duplicate lines.
        max_short_lines: fraction of lines with fewer than `short_line_chars`.
    """

    min_ended_lines: Fraction[float] = 0.12
    max_duplicate_chars: Fraction[float] = 0.1
    max_short_lines: Fraction[float] = 0.67
    short_line_chars: NonNegative[int] = 30

    def __call__(self, document: Document) -> Document | str:
        lines = [line for line in document.text.splitlines() if line.strip()]
        if not lines:
            return "FineWeb: no line"
        count, chars = len(lines), sum(map(len, lines))
        ended = sum(line.rstrip().endswith(SENTENCE_ENDS) for line in lines)
        if ended / count <= self.min_ended_lines:
            return "FineWeb: few lines that end as a sentence"
        duplicates = sum(map(len, find_duplicates(lines)))
        if duplicates / chars >= self.max_duplicate_chars:
            return "FineWeb: characters in duplicate lines"
        short = sum(len(line) < self.short_line_chars for line in lines)
        return (
            "FineWeb: short lines"
            if short / count >= self.max_short_lines
            else document
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class MaskPII(Filter):
    """Replaces each email address and each public IP address by a placeholder.

    Private and reserved IP addresses are kept, as they identify nobody.
    """

    email: str = "<email>"
    ip: str = "<ip>"

    def __call__(self, document: Document) -> Document | str:
        text = EMAIL.sub(self.email, document.text)
        return document._replace(text=IP.sub(self._mask_address, text))

    def _mask_address(self, match: re.Match[str]) -> str:
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            public = False
        return self.ip if public else match[0]


@configurable
@dataclass(frozen=True, kw_only=True)
class QualityClassifier(Filter):
    """Keeps texts that resemble the good examples more than the bad ones.

    A linear model of words and word pairs, as in Joulin et al. 2016, arXiv:1607.01759,
    but trained to convergence, so that it depends on the examples only.

    Attributes:
        min_probability: smallest probability of `good` to keep a text.
    """

    good: Corpus
    bad: Corpus
    min_probability: OpenFraction[float] = 0.5

    def __call__(self, document: Document) -> Document | str:
        probability = self.classifier.predict_proba([document.text])[0, 1]
        is_good = probability >= self.min_probability
        return document if is_good else "QualityClassifier: unlike the good examples"

    @cached_property
    def classifier(self) -> Any:
        """The trained model. Training prints its accuracy on examples held out."""
        purpose = "to train a QualityClassifier"
        names = "feature_extraction.text linear_model model_selection pipeline".split()
        feature, linear, selection, pipeline = (
            import_optional(f"sklearn.{name}", "data", purpose) for name in names
        )
        texts, labels = [], []
        for label, corpus in (("bad", self.bad), ("good", self.good)):
            examples = [document.text for document in read_valid(corpus)]
            require(
                len(examples) >= FOLDS,
                f"QualityClassifier.{label} has {len(examples)} texts: give at"
                f" least {FOLDS}.",
            )
            texts += examples
            labels += [label == "good"] * len(examples)
        model = pipeline.make_pipeline(
            feature.HashingVectorizer(
                n_features=HASH_FEATURES, ngram_range=(1, 2), alternate_sign=False
            ),
            linear.LogisticRegression(C=100.0, max_iter=1000),
        )
        folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        score = selection.cross_val_score(model, texts, labels, cv=folds).mean()
        print_line(f"QualityClassifier accuracy on held-out examples: {score:.1%}")
        return model.fit(texts, labels)
