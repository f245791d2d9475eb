"""Byte-level BPE tokenizers: training, and encoding without other libraries."""

import functools
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus
from lmx.data.tokenizer.base import (
    BYTES,
    FileTokenizer,
    TokenizerConfig,
    encode_utf8,
    list_vocab,
    load_or_train,
    parse_json,
)
from lmx.data.tokenizer.bpe import BPEModel, Merge, Pair, encode_word, train_bpe
from lmx.data.tokenizer.pretokenize import (
    PATTERNS,
    PretokenizerName,
    compile_pretokenizer,
)
from lmx.data.tokenizer.tiktoken import TIKTOKEN_FILE, derive_merges, parse_ranks
from lmx.data.tokenizer.tokenizer_json import BYTE_OF_LETTER, TOKENIZER_JSON

BOS_TEXT, EOS_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
TRAINER_VERSION = 1  # raise it when the same text and settings give other merges
WORD_CACHE_SIZE = 2**17  # words


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BPETokenizer(FileTokenizer):
    """Byte-level BPE, from a tokenizer.json that `BPE` wrote or a tiktoken file.

    Special tokens spelled in text are encoded as other words.

    Attributes:
        pretokenizer: splits text into words before merging.
        special_tokens: by name.
    """

    pretokenizer: PretokenizerName
    special_tokens: Mapping[str, int]

    @functools.cached_property
    def _model(self) -> tuple[Mapping[bytes, int], Mapping[Pair, Merge]]:
        """The token of each byte string, and the merges."""
        if TIKTOKEN_FILE in self.files:
            ranks = parse_ranks(self.files[TIKTOKEN_FILE])
            return ranks, derive_merges(ranks)
        model = parse_json(self.files, TOKENIZER_JSON)["model"]
        vocab, merges = model["vocab"], {}
        for rank, (left, right) in enumerate(model["merges"]):
            merges[vocab[left], vocab[right]] = Merge(rank, vocab[left + right])
        return {_to_bytes(text): token for text, token in vocab.items()}, merges

    @functools.cached_property
    def vocab_bytes(self) -> tuple[bytes, ...]:
        bytes_of = {token: data for data, token in self._model[0].items()}
        return list_vocab(dict.fromkeys(self.special_tokens.values(), b"") | bytes_of)

    @functools.cached_property
    def _encode_word(self) -> Any:
        tokens, merges = self._model
        byte_tokens = [tokens[byte] for byte in BYTES]
        # In tiktoken a word that is a token is never split.
        word_tokens = tokens if TIKTOKEN_FILE in self.files else {}

        @functools.lru_cache(WORD_CACHE_SIZE)
        def encode(word: str) -> list[int]:
            data = word.encode()
            if (token := word_tokens.get(data)) is not None:
                return [token]
            return encode_word([byte_tokens[byte] for byte in data], merges)

        return encode

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the cache of words."""
        return {k: v for k, v in self.__dict__.items() if k != "_encode_word"}

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        words = compile_pretokenizer(self.pretokenizer).findall(text)
        tokens = [token for word in words for token in self._encode_word(word)]
        return np.array(tokens, np.int32)

    @property
    def hf_files(self) -> Mapping[str, bytes]:
        return {k: v for k, v in self.files.items() if k != TIKTOKEN_FILE}

    @property
    def digest(self) -> str:
        version = unicodedata.unidata_version  # determines the words
        return hashlib.sha256(f"{super().digest}{version}".encode()).hexdigest()

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        return () if self.bos is None else (self.bos,)

    def token_to_id(self, text: str) -> int | None:
        return self.special_tokens.get(text)


@configurable
@dataclass(frozen=True, kw_only=True)
class BPE(TokenizerConfig):
    """Byte-pair encoding: the most frequent pairs of bytes are merged, within words.

    Trained on the train split by `lmx.data.tokenizer.bpe` and cached. It is stored as a
    `tokenizer.json`, which the library `tokenizers` can read. Letters are those of the
    Unicode version of the running Python.
    """

    vocab: int = 4096  # V, including the bytes, BOS and EOS
    pretokenizer: PretokenizerName = "gpt2"

    def __post_init__(self):
        if self.vocab < (least := len(BYTES) + 2):
            raise ConfigError(
                f"BPE.vocab is {self.vocab}: it must be at least {least}, for the"
                " bytes, BOS and EOS."
            )

    def open(self, corpus: Corpus) -> BPETokenizer:
        """Loads it from the cache, or trains it on the train split."""
        trainer = f"{TRAINER_VERSION}, Unicode {unicodedata.unidata_version}"
        data = load_or_train(corpus, (f"{self}", trainer), self._train)
        bos, eos = self.vocab - 2, self.vocab - 1
        return BPETokenizer(
            files={TOKENIZER_JSON: data},
            pretokenizer=self.pretokenizer,
            special_tokens={BOS_TEXT: bos, EOS_TEXT: eos},
            bos=bos,
            eos=eos,
            stop_tokens=(eos,),
        )

    def _train(self, corpus: Corpus) -> bytes:
        split_words = compile_pretokenizer(self.pretokenizer).findall
        words = Counter[str]()
        for document in corpus.read_nonempty("train"):
            encode_utf8(document.text)
            words.update(split_words(document.text))
        print_line(f"training BPE ({self.vocab} tokens) on {len(words):,} words")
        counts = {word.encode(): count for word, count in words.items()}
        model = train_bpe(counts, self.vocab - 2)
        if len(model.vocab) < self.vocab - 2:
            raise ConfigError(
                f"the text has too few repetitions for {self.vocab} tokens: set"
                f" BPE.vocab to {len(model.vocab) + 2} or less, or add text."
            )
        return to_tokenizer_json(model, self.pretokenizer)


def _to_bytes(text: str) -> bytes:
    return bytes(BYTE_OF_LETTER[letter] for letter in text)


def to_tokenizer_json(model: BPEModel, pretokenizer: PretokenizerName) -> bytes:
    """A tokenizer.json, for lmx and for the library `tokenizers`."""
    letters = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    texts = ["".join(letters[byte] for byte in data) for data in model.vocab]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS[pretokenizer]},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [split, {**byte_level, "use_regex": False}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": [
            {"id": len(texts) + n, "content": name, "special": True} | flags
            for n, name in enumerate((BOS_TEXT, EOS_TEXT))
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: token for token, text in enumerate(texts)},
            "merges": [[texts[a], texts[b]] for (a, b), _ in model.merges],
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()
