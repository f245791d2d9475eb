"""Byte-level tokenizers that lmx encodes by itself, and learns."""

import functools
import hashlib
import json
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from lmx.config.names import ConfigError, configurable
from lmx.data.bpe import Learned, Merge, Pair, encoded, learned
from lmx.data.cache import cache_folder, write_whole
from lmx.data.corpora.corpus import Corpus
from lmx.data.progress import say
from lmx.data.tokenizers.codec import BYTES, Tokenizer, utf8
from lmx.data.tokenizers.fast import FAST, LETTERS
from lmx.data.tokenizers.file import FileCodec, content
from lmx.data.tokenizers.words import PATTERNS, Words, cutter

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
RECIPE = 1  # raise it when the same text and settings come to give other merges
REMEMBERED = 2**17  # words whose tokens are kept


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PairCodec(FileCodec):
    """Merges of bytes within words. Special tokens in text are read as other words.

    Attributes:
        words: how text is cut before anything is merged.
        merges: what becomes of a pair of tokens.
        whole: words that are tokens as they stand, whatever the merges say.
        specials: tokens that stand for no text, by their names.
    """

    words: Words
    pieces: tuple[bytes, ...] = ()
    merges: Mapping[Pair, Merge]
    whole: Mapping[bytes, int]
    specials: Mapping[str, int]

    @functools.cached_property
    def _bytes(self) -> list[int]:
        """The token of each byte."""
        tokens = {piece: token for token, piece in enumerate(self.pieces)}
        return [tokens[byte] for byte in BYTES]

    @functools.cached_property
    def _tokens_of(self) -> Any:
        @functools.lru_cache(REMEMBERED)
        def tokens_of(word: str) -> list[int]:
            said = word.encode()
            if (token := self.whole.get(said)) is not None:
                return [token]
            return encoded([self._bytes[byte] for byte in said], self.merges)

        return tokens_of

    def __getstate__(self) -> dict[str, Any]:
        """All but the words that this process remembers."""
        return {k: v for k, v in self.__dict__.items() if k != "_tokens_of"}

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        utf8(text)
        words = map(self._tokens_of, cutter(self.words).findall(text))
        return np.array([token for word in words for token in word], np.int32)

    @property
    def ids(self) -> Mapping[str, Any]:
        return {**super().ids, "words": self.words}

    @property
    def digest(self) -> str:
        letters = unicodedata.unidata_version  # which decides what is one word
        return hashlib.sha256(f"{super().digest}{letters}".encode()).hexdigest()

    @property
    def prefix(self) -> tuple[int, ...]:
        return () if self.begin is None else (self.begin,)

    def token(self, text: str) -> int | None:
        return self.specials.get(text)


@configurable
@dataclass(frozen=True, kw_only=True)
class BytePairs(Tokenizer):
    """The most frequent pairs of bytes, and pairs of those, within words.

    Learned from the train split by `lmx.data.bpe`, then kept in the cache. What a run
    keeps is a `tokenizer.json`, which the library `tokenizers` reads as well. Letters
    are those of the running Python's Unicode.
    """

    vocab: int = 4096  # V, with the bytes, begin and end
    words: Words = "gpt2"

    def __post_init__(self):
        if self.vocab < (least := len(BYTES) + 2):
            raise ConfigError(
                f"BytePairs.vocab is {self.vocab}: the bytes, begin and end alone are"
                f" {least}."
            )

    def open(self, corpus: Corpus) -> PairCodec:
        """From the cache, or learned from the train split."""
        by = f"{RECIPE}, Unicode {unicodedata.unidata_version}"
        made_by = (corpus.digest(), self.vocab, self.words, by)
        key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
        path = cache_folder("tokenizers") / f"{key}.json"
        if not path.is_file():
            write_whole(path, described(self._learned(corpus), self.words))
        return opened(path.read_bytes(), self.words)

    def _learned(self, corpus: Corpus) -> Learned:
        began = time.monotonic()
        cut = cutter(self.words)
        words = Counter[str]()
        for document in corpus.documents("train"):
            utf8(document.text)
            words.update(cut.findall(document.text))
        say(f"learning {self.vocab} byte pairs from {len(words):,} different words")
        said = {word.encode(): often for word, often in words.items()}
        found = learned(said, self.vocab - 2)
        if len(found.pieces) < self.vocab - 2:
            raise ConfigError(
                f"the text has too few repetitions for {self.vocab} byte pairs: set"
                f" BytePairs.vocab to {len(found.pieces) + 2} or less, or give more"
                " text."
            )
        say(f"learned them in {time.monotonic() - began:.0f} s")
        return found


def opened(file: bytes, words: Words, **ids: Any) -> PairCodec:
    """The tokenizer that `described` wrote; begin and end are its own unless given."""
    said = content({FAST: file}, FAST)
    vocab = said["model"]["vocab"]
    specials = {one["content"]: one["id"] for one in said["added_tokens"]}
    pieces = {token: bytes(LETTERS[x] for x in text) for text, token in vocab.items()}
    merges = {}
    for rank, (left, right) in enumerate(said["model"]["merges"]):
        merges[vocab[left], vocab[right]] = Merge(rank, vocab[left + right])
    given = {"begin": specials[BEGIN], "end": specials[END], "ends": (specials[END],)}
    return PairCodec(
        files={FAST: file},
        words=words,
        pieces=tuple(pieces.get(n, b"") for n in range(len(pieces) + len(specials))),
        merges=merges,
        whole={},
        specials=specials,
        **{**given, **ids},
    )


def described(found: Learned, words: Words) -> bytes:
    """A tokenizer.json, for the library `tokenizers` as for lmx."""
    letters = {byte: letter for letter, byte in LETTERS.items()}
    texts = ["".join(letters[byte] for byte in piece) for piece in found.pieces]
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cut = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS[words]},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [cut, {**in_bytes, "use_regex": False}]
    added = [
        {"id": len(texts) + n, "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for n, name in enumerate((BEGIN, END))
    ]
    said = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**in_bytes, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: token for token, text in enumerate(texts)},
            "merges": [[texts[a], texts[b]] for (a, b), _ in found.merges],
        },
    }
    return json.dumps(said, ensure_ascii=False).encode()
