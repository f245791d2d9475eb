"""SentencePiece tokenizers: training, and models of others."""

import functools
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError, Positive, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus
from lmx.data.tokenizer.base import (
    FileTokenizer,
    TokenizerConfig,
    encode_utf8,
    list_vocab,
    load_or_train,
    parse_json,
)

SENTENCEPIECE_FILE = "tokenizer.model"
TOKENIZER_CONFIG, ADDED_TOKENS = "tokenizer_config.json", "added_tokens.json"
SPACE_SYMBOL = "\u2581"  # SentencePiece's symbol for a space
RESERVED_CHARACTERS = re.compile("[\0\t\u2047\u2581\u2585]+")  # its trainer skips these
TRAINER_VERSION = 2  # raise it when the same text and settings give another model
MAX_SENTENCE_CHARACTERS = 4096
SplitBy = Literal["word", "line"]
SENTENCE_PATTERNS: Mapping[SplitBy, re.Pattern[str]] = {
    "word": re.compile(rf"(?s).{{1,{MAX_SENTENCE_CHARACTERS}}}"),
    "line": re.compile(
        rf"[^\n]{{0,{MAX_SENTENCE_CHARACTERS}}}\n+ *"
        rf"|[^\n]{{1,{MAX_SENTENCE_CHARACTERS}}}"
    ),
}
MAX_TRAINING_CHARACTERS = {"bpe": 32_000_000, "unigram": 4_000_000}  # half a minute


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SentencePieceTokenizer(FileTokenizer):
    """A SentencePiece model. Special tokens spelled in text are encoded as other words.

    Attributes:
        escape_space_symbol: whether U+2581 in text is encoded as its bytes, so that
            decoding restores it. The library reads it as a space.
    """

    escape_space_symbol: bool = False

    @functools.cached_property
    def vocab_bytes(self) -> tuple[bytes, ...]:
        model = self._processor
        added = [
            (token, b"" if is_special else text.encode())
            for text, (token, is_special) in self._added_tokens.items()
        ]
        own = ((n, piece_bytes(model, n)) for n in range(model.vocab_size()))
        return list_vocab([*added, *own])

    @functools.cached_property
    def strip_leading_space(self) -> bool:
        first, *_ = self._processor.Encode("a")
        return self.vocab_bytes[first].startswith(b" ")

    @functools.cached_property
    def _processor(self) -> Any:
        return load_model(self.files[SENTENCEPIECE_FILE])

    @functools.cached_property
    def _added_tokens(self) -> dict[str, tuple[int, bool]]:
        """Tokens that were added after training, and whether they are special."""
        old = parse_json(self.files, ADDED_TOKENS)
        new = parse_json(self.files, TOKENIZER_CONFIG).get("added_tokens_decoder", {})
        return {text: (token, True) for text, token in old.items()} | {
            entry["content"]: (int(token), entry.get("special", False))
            for token, entry in new.items()
        }

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        parts = text.split(SPACE_SYMBOL) if self.escape_space_symbol else [text]
        tokens = self._processor.Encode(parts[0])
        for part in parts[1:]:
            tokens += self._space_symbol_tokens + self._processor.Encode(part)
        return np.fromiter(tokens, np.int32, len(tokens))

    @functools.cached_property
    def _space_symbol_tokens(self) -> list[int]:
        bytes_of_symbol = SPACE_SYMBOL.encode()
        return self._processor.PieceToId([f"<0x{b:02X}>" for b in bytes_of_symbol])

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        bos = self._processor.bos_id()
        return (bos,) if bos >= 0 else ()

    @property
    def end_token(self) -> int | None:
        eos = self._processor.eos_id()
        return eos if eos >= 0 else None

    def token_to_id(self, text: str) -> int | None:
        if text in self._added_tokens:
            return self._added_tokens[text][0]
        token = self._processor.PieceToId(text)
        return None if token == self._processor.unk_id() else token


@configurable
@dataclass(frozen=True, kw_only=True)
class SentencePiece(TokenizerConfig):
    """Subword units learned by SentencePiece, with byte fallback.

    Text is not normalized, so encoding is lossless. Trained on the train split and
    cached. Kudo and Richardson 2018, arXiv:1808.06226.

    Attributes:
        model_type: the training algorithm.
        split_by: what a token cannot cross. A word includes the space before it, and a
            run of spaces or of punctuation with its newline is one too. A line includes
            the indentation of the next; source code needs fewer such tokens.
    """

    vocab: Positive[int] = 4096  # V, with the bytes, BOS, EOS and an unused one
    model_type: Literal["bpe", "unigram"] = "bpe"
    split_by: SplitBy = "word"

    def open(self, corpus: Corpus) -> SentencePieceTokenizer:
        import sentencepiece

        trainer = f"{TRAINER_VERSION}, sentencepiece {sentencepiece.__version__}"
        model = load_or_train(corpus, (f"{self}", trainer), self._train)
        processor = load_model(model)
        return SentencePieceTokenizer(
            files={SENTENCEPIECE_FILE: model},
            bos=processor.bos_id(),
            eos=processor.eos_id(),
            stop_tokens=(processor.eos_id(),),
            escape_space_symbol=True,
        )

    def _train(self, corpus: Corpus) -> bytes:
        size = sum(len(text) for _, text in corpus.read_nonempty("train"))
        stride = -(-size // MAX_TRAINING_CHARACTERS[self.model_type])
        print_line(
            f"training SentencePiece ({self.model_type}, {self.vocab} tokens) on"
            f" {size:,} characters"
            + (f", one sentence in {stride}" if stride > 1 else "")
        )
        sentences = _iter_sentences(corpus, stride, SENTENCE_PATTERNS[self.split_by])
        return _train_model(sentences, self.vocab, self.model_type, self.split_by)


def load_model(model: bytes) -> Any:
    """A SentencePieceProcessor of a serialized model."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise ConfigError(
            f"{SENTENCEPIECE_FILE} of {len(model)} bytes is not a SentencePiece model:"
            " it is damaged or of another kind. Restore it from its source."
        ) from None
    return processor


def piece_bytes(processor: Any, token: int) -> bytes:
    """The UTF-8 bytes of a token."""
    piece = processor.IdToPiece(token)
    if processor.IsByte(token):
        return bytes([int(piece[3:5], 16)])
    if processor.IsControl(token) or processor.IsUnknown(token):
        return b""
    return piece.replace(SPACE_SYMBOL, " ").encode()


def _iter_sentences(
    corpus: Corpus, stride: int, pattern: re.Pattern[str]
) -> Iterator[str]:
    count = 0
    for _, text in corpus.read_nonempty("train"):
        for part in RESERVED_CHARACTERS.split(text):
            for match in pattern.finditer(part):
                if count % stride == 0:
                    yield match[0]
                count += 1


def _train_model(
    sentences: Iterator[str], vocab: int, model_type: str, split_by: SplitBy
) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=vocab,
            model_type=model_type,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_whitespace=split_by == "word",
            split_by_unicode_script=split_by == "word",
            split_digits=split_by == "line",
            max_sentence_length=4 * MAX_SENTENCE_CHARACTERS,  # bytes: none is too long
            num_threads=1,  # deterministic; two threads are no faster
            minloglevel=2,  # errors, which are raised as exceptions
        )
    except RuntimeError as error:
        raise _explain_error(vocab, f"{error}") from None
    return model.getvalue()


def _explain_error(vocab: int, message: str) -> ConfigError:
    if high := re.search(r"too high.*<= (\d+)", message):
        return ConfigError(
            f"the text has too few repetitions for {vocab} tokens: set"
            f" SentencePiece.vocab to {high[1]} or less, or add text."
        )
    if low := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return ConfigError(
            f"{vocab} tokens are too few for the bytes and the characters of the text:"
            f" set SentencePiece.vocab to {int(low[1])} or more."
        )
    return ConfigError(f"SentencePiece cannot train {vocab} tokens: {message}")
