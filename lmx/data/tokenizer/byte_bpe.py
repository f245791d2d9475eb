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

from lmx.config.registry import ConfigError, configurable
from lmx.core.console import print_line
from lmx.core.files import get_cache_dir, write_atomic
from lmx.data.corpus.corpus import Corpus
from lmx.data.tokenizer.base import BYTES, TokenizerConfig, encode_utf8
from lmx.data.tokenizer.bpe import BPEModel, Merge, Pair, encode_word, train_bpe
from lmx.data.tokenizer.external import FileCodec, parse_json
from lmx.data.tokenizer.hf_json import BYTE_OF_LETTER, TOKENIZER_JSON
from lmx.data.tokenizer.pretokenize import (
    PATTERNS,
    PretokenizerName,
    compile_pretokenizer,
)

BOS_TEXT, EOS_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
TRAINER_VERSION = (
    1  # raise it when the same text and settings come to give other merges
)
WORD_CACHE_SIZE = 2**17  # words whose tokens are kept


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BPETokenizer(FileCodec):
    """Merges of bytes within words. Special tokens in text are read as other words.

    Attributes:
        words: how text is cut before anything is merged.
        merges: what becomes of a pair of tokens.
        whole: words that are tokens as they stand, whatever the merges say.
        specials: tokens that stand for no text, by their names.
    """

    pretokenizer: PretokenizerName
    vocab_bytes: tuple[bytes, ...] = ()
    merges: Mapping[Pair, Merge]
    word_tokens: Mapping[bytes, int]
    special_tokens: Mapping[str, int]

    @functools.cached_property
    def _byte_tokens(self) -> list[int]:
        """The token of each byte."""
        tokens = {piece: token for token, piece in enumerate(self.vocab_bytes)}
        return [tokens[byte] for byte in BYTES]

    @functools.cached_property
    def _encode_word(self) -> Any:
        @functools.lru_cache(WORD_CACHE_SIZE)
        def tokens_of(word: str) -> list[int]:
            said = word.encode()
            if (token := self.word_tokens.get(said)) is not None:
                return [token]
            return encode_word([self._byte_tokens[byte] for byte in said], self.merges)

        return tokens_of

    def __getstate__(self) -> dict[str, Any]:
        """All but the words that this process remembers."""
        return {k: v for k, v in self.__dict__.items() if k != "_tokens_of"}

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        words = map(
            self._encode_word, compile_pretokenizer(self.pretokenizer).findall(text)
        )
        return np.array([token for word in words for token in word], np.int32)

    @property
    def ids(self) -> Mapping[str, Any]:
        return {**super().ids, "words": self.pretokenizer}

    @property
    def digest(self) -> str:
        letters = unicodedata.unidata_version  # which decides what is one word
        return hashlib.sha256(f"{super().digest}{letters}".encode()).hexdigest()

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        return () if self.bos is None else (self.bos,)

    def token_to_id(self, text: str) -> int | None:
        return self.special_tokens.get(text)


@configurable
@dataclass(frozen=True, kw_only=True)
class BPE(TokenizerConfig):
    """The most frequent pairs of bytes, and pairs of those, within words.

    Learned from the train split by `lmx.data.tokenizer.bpe`, then kept in the cache. What a run
    keeps is a `tokenizer.json`, which the library `tokenizers` reads as well. Letters
    are those of the running Python's Unicode.
    """

    vocab: int = 4096  # V, with the bytes, begin and end
    pretokenizer: PretokenizerName = "gpt2"

    def __post_init__(self):
        if self.vocab < (least := len(BYTES) + 2):
            raise ConfigError(
                f"BPE.vocab is {self.vocab}: the bytes, begin and end alone are"
                f" {least}."
            )

    def open(self, corpus: Corpus) -> BPETokenizer:
        """From the cache, or learned from the train split."""
        by = f"{TRAINER_VERSION}, Unicode {unicodedata.unidata_version}"
        made_by = (corpus.compute_digest(), self.vocab, self.pretokenizer, by)
        key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
        path = get_cache_dir("tokenizers") / f"{key}.json"
        if not path.is_file():
            write_atomic(
                path, to_tokenizer_json(self._train(corpus), self.pretokenizer)
            )
        return load_bpe(path.read_bytes(), self.pretokenizer)

    def _train(self, corpus: Corpus) -> BPEModel:
        began = time.monotonic()
        cut = compile_pretokenizer(self.pretokenizer)
        words = Counter[str]()
        for document in corpus.read_nonempty("train"):
            encode_utf8(document.text)
            words.update(cut.findall(document.text))
        print_line(
            f"learning {self.vocab} byte pairs from {len(words):,} different words"
        )
        said = {word.encode(): often for word, often in words.items()}
        found = train_bpe(said, self.vocab - 2)
        if len(found.vocab) < self.vocab - 2:
            raise ConfigError(
                f"the text has too few repetitions for {self.vocab} byte pairs: set"
                f" BPE.vocab to {len(found.vocab) + 2} or less, or give more"
                " text."
            )
        print_line(f"learned them in {time.monotonic() - began:.0f} s")
        return found


def load_bpe(file: bytes, words: PretokenizerName, **ids: Any) -> BPETokenizer:
    """The tokenizer that `described` wrote; begin and end are its own unless given."""
    said = parse_json({TOKENIZER_JSON: file}, TOKENIZER_JSON)
    vocab = said["model"]["vocab"]
    specials = {one["content"]: one["id"] for one in said["added_tokens"]}
    pieces = {
        token: bytes(BYTE_OF_LETTER[x] for x in text) for text, token in vocab.items()
    }
    merges = {}
    for rank, (left, right) in enumerate(said["model"]["merges"]):
        merges[vocab[left], vocab[right]] = Merge(rank, vocab[left + right])
    given = {
        "begin": specials[BOS_TEXT],
        "end": specials[EOS_TEXT],
        "ends": (specials[EOS_TEXT],),
    }
    return BPETokenizer(
        files={TOKENIZER_JSON: file},
        pretokenizer=words,
        vocab_bytes=tuple(
            pieces.get(n, b"") for n in range(len(pieces) + len(specials))
        ),
        merges=merges,
        word_tokens={},
        special_tokens=specials,
        **{**given, **ids},
    )


def to_tokenizer_json(found: BPEModel, words: PretokenizerName) -> bytes:
    """A tokenizer.json, for the library `tokenizers` as for lmx."""
    letters = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    texts = ["".join(letters[byte] for byte in piece) for piece in found.vocab]
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
        for n, name in enumerate((BOS_TEXT, EOS_TEXT))
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
