"""Pieces of words, learned with SentencePiece from the train split."""

import functools
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError, configurable
from lmx.core.console import print_line
from lmx.core.files import get_cache_dir, write_atomic
from lmx.data.corpus.corpus import Corpus
from lmx.data.tokenizer.base import (
    SENTENCEPIECE_FILE,
    Tokenizer,
    TokenizerConfig,
    encode_utf8,
)

SPACE_SYMBOL = (
    "\u2581"  # what SentencePiece writes for a space, and so cannot read as itself
)
RESERVED_CHARACTERS = re.compile(
    "[\0\t\u2047\u2581\u2585]+"
)  # it skips text that holds these
TRAINER_VERSION = (
    2  # raise it when the same text and settings come to give other pieces
)
MAX_SENTENCE_CHARACTERS = 4096  # characters at most that it sees as one sentence
SplitBy = Literal["word", "line"]
SENTENCE_PATTERNS: Mapping[SplitBy, re.Pattern[str]] = {
    "word": re.compile(rf"(?s).{{1,{MAX_SENTENCE_CHARACTERS}}}"),
    "line": re.compile(
        rf"[^\n]{{0,{MAX_SENTENCE_CHARACTERS}}}\n+ *|[^\n]{{1,{MAX_SENTENCE_CHARACTERS}}}"
    ),
}
MAX_TRAINING_CHARACTERS = {
    "bpe": 32_000_000,
    "unigram": 4_000_000,
}  # characters, for half a minute


@configurable
@dataclass(frozen=True, kw_only=True)
class SentencePiece(TokenizerConfig):
    """Frequent strings of the train split, and the 256 bytes for all the rest.

    No normalisation, so nothing is lost. Learned once, then kept in the cache. Kudo and
    Richardson 2018, arXiv:1808.06226.

    Attributes:
        within: what a piece may not reach beyond. A word has the space before it, and a
            run of spaces or of punctuation with its newline is one too. A line has the
            indentation of the next; source code needs fewer such tokens.
    """

    vocab: int = 4096  # V, with the bytes, begin, end and one that is never used
    model_type: Literal["bpe", "unigram"] = "bpe"
    split_by: SplitBy = "word"

    def open(self, corpus: Corpus) -> "PieceCodec":
        """From the cache, or trained on the train split."""
        import sentencepiece

        by = f"{TRAINER_VERSION}, sentencepiece {sentencepiece.__version__}"
        made_by = (
            corpus.compute_digest(),
            self.vocab,
            self.model_type,
            self.split_by,
            by,
        )
        key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
        path = get_cache_dir("tokenizers") / f"{key}.model"
        if not path.is_file():
            write_atomic(path, self._train(corpus))
        return PieceCodec(model=path.read_bytes())

    def _train(self, corpus: Corpus) -> bytes:
        began = time.monotonic()
        characters = sum(len(text) for _, text in corpus.read_nonempty("train"))
        stride = -(-characters // MAX_TRAINING_CHARACTERS[self.model_type])
        print_line(
            f"learning {self.vocab} {self.model_type} pieces from {characters:,} characters"
            + (f", one chunk in {stride}" if stride > 1 else "")
        )
        chunks = _iter_sentences(corpus, stride, SENTENCE_PATTERNS[self.split_by])
        model = _train_model(chunks, self.vocab, self.model_type, self.split_by)
        print_line(f"learned them in {time.monotonic() - began:.0f} s")
        return model


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PieceCodec(Tokenizer):
    """What a SentencePiece model does, for text without exception."""

    model: bytes
    vocab_bytes: tuple[bytes, ...] = ()

    def __post_init__(self):
        tokens = range(self._processor.vocab_size())
        pieces = tuple(piece_bytes(self._processor, token) for token in tokens)
        object.__setattr__(self, "pieces", pieces)
        object.__setattr__(self, "begin", self._processor.bos_id())
        object.__setattr__(self, "end", self._processor.eos_id())

    @functools.cached_property
    def _processor(self) -> Any:
        return load_model(self.model)

    @functools.cached_property
    def _space_symbol_tokens(self) -> list[int]:
        """The bytes of U+2581, which in a piece means a space."""
        to_token: Callable[[str], int] = self._processor.PieceToId
        return [to_token(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()]

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        first, *others = text.split(SPACE_SYMBOL)
        tokens = self._processor.Encode(first)
        for other in others:
            tokens += self._space_symbol_tokens + self._processor.Encode(other)
        return np.fromiter(tokens, np.int32, len(tokens))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    @property
    def hf_files(self) -> Mapping[str, bytes]:
        return {SENTENCEPIECE_FILE: self.model}

    def save(self, folder: Path) -> None:
        write_atomic(folder / SENTENCEPIECE_FILE, self.model)


def load_model(model: bytes) -> Any:
    """What SentencePiece makes of a model as it stores them."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise ConfigError(
            f"{len(model)} bytes that are no SentencePiece model: the {SENTENCEPIECE_FILE} they"
            " come from is damaged, take it from where it is whole."
        ) from None
    return processor


def piece_bytes(processor: Any, token: int) -> bytes:
    """The UTF-8 bytes that a token stands for."""
    piece = processor.IdToPiece(token)
    if processor.IsByte(token):
        return bytes([int(piece[3:5], 16)])
    if processor.IsControl(token) or processor.IsUnknown(token):
        return b""
    return piece.replace(SPACE_SYMBOL, " ").encode()


def _iter_sentences(
    corpus: Corpus, stride: int, chunk: re.Pattern[str]
) -> Iterator[str]:
    """Every `stride`-th chunk of the train split."""
    count = 0
    for _, text in corpus.read_nonempty("train"):
        for part in RESERVED_CHARACTERS.split(text):
            for found in chunk.finditer(part):
                if count % stride == 0:
                    yield found[0]
                count += 1


def _train_model(
    chunks: Iterator[str], vocab: int, kind: str, within: SplitBy
) -> bytes:
    """The model of that size, as SentencePiece stores it."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=chunks,
            model_writer=model,
            vocab_size=vocab,
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_whitespace=within == "word",
            split_by_unicode_script=within == "word",
            split_digits=within == "line",
            max_sentence_length=4 * MAX_SENTENCE_CHARACTERS,  # bytes: none is too long
            num_threads=1,  # the same model wherever it is learned; two are no faster
            minloglevel=2,  # errors, which come back as exceptions
        )
    except RuntimeError as error:
        raise _explain_error(vocab, f"{error}") from None
    return model.getvalue()


def _explain_error(vocab: int, message: str) -> ConfigError:
    """What SentencePiece says of a size that cannot be, in our words."""
    if high := re.search(r"too high.*<= (\d+)", message):
        return ConfigError(
            f"the text has too few repetitions for {vocab} pieces: set"
            f" SentencePiece.vocab to {high[1]} or less, or give more text."
        )
    if low := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return ConfigError(
            f"{vocab} pieces are too few for the bytes and the characters of the text:"
            f" set SentencePiece.vocab to {int(low[1])} or more."
        )
    return ConfigError(f"SentencePiece cannot learn {vocab} pieces: {message}")
