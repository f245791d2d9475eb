"""Tokenizers whose files are those of others, and are kept as they are."""

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError
from lmx.core.files import write_atomic
from lmx.data.tokenizer.base import TOKENIZER_DIR, Tokenizer, encode_utf8
from lmx.data.tokenizer.sentencepiece import load_model, piece_bytes

SENTENCEPIECE_MODEL, TOKENIZER_CONFIG, ADDED_TOKENS = (
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
)
IDS = "ids.json"  # beside them in a run: which tokens begin and end


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FileCodec(Tokenizer):
    """A tokenizer of others, whose files are carried along.

    `decode(encode(text)) == text` where its own normalisation leaves the text as it is
    and no special token is spelled in it.

    Attributes:
        ends: tokens at which a generated text ends; `end` and perhaps others.
        strips: whether `encode` puts a space before a text; `decode` takes it away.
    """

    files: Mapping[str, bytes]
    ends: tuple[int, ...] = ()
    strip_leading_space: bool = False

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return self.ends

    @property
    def ids(self) -> Mapping[str, Any]:
        """What its files do not say, as plain data."""
        return {"begin": self.bos, "end": self.eos, "ends": self.ends}

    @property
    @abstractmethod
    def prefix_tokens(self) -> tuple[int, ...]:
        """What its own files say comes before every text."""

    @abstractmethod
    def token_to_id(self, text: str) -> int | None:
        """The token that is spelled so, special ones among them."""

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(f"{(self.bos, self.eos)}".encode())
        for name in sorted(self.files):
            digest.update(name.encode() + hashlib.sha256(self.files[name]).digest())
        return digest.hexdigest()

    @property
    def hf_files(self) -> Mapping[str, bytes]:
        return self.files

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        text = super().decode(tokens)
        return text.removeprefix(" ") if self.strip_leading_space else text

    def save(self, folder: Path) -> None:
        (folder / TOKENIZER_DIR).mkdir(exist_ok=True)
        ids = json.dumps(self.ids).encode()
        for name, text in {**self.files, IDS: ids}.items():
            write_atomic(folder / TOKENIZER_DIR / name, text)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SentencePieceTokenizer(FileCodec):
    """A SentencePiece model, with the normalisation it was trained with.

    Spelled special tokens are no tokens in text: they are read as any other words.
    """

    vocab_bytes: tuple[bytes, ...] = ()

    def __post_init__(self):
        count = self._processor.vocab_size()
        pieces = {token: piece_bytes(self._processor, token) for token in range(count)}
        for text, (token, special) in self._added.items():
            pieces.setdefault(token, b"" if special else text.encode())
        every = range(max(pieces) + 1)
        object.__setattr__(self, "pieces", tuple(pieces.get(n, b"") for n in every))
        (first, *_) = self._processor.Encode("a")
        object.__setattr__(self, "strips", self.vocab_bytes[first].startswith(b" "))

    @functools.cached_property
    def _processor(self) -> Any:
        return load_model(self.files[SENTENCEPIECE_MODEL])

    @functools.cached_property
    def _added(self) -> dict[str, tuple[int, bool]]:
        """Tokens that came after training, and whether they are special."""
        old = parse_json(self.files, ADDED_TOKENS)
        new = parse_json(self.files, TOKENIZER_CONFIG).get("added_tokens_decoder", {})
        return {text: (token, True) for text, token in old.items()} | {
            one["content"]: (int(token), one.get("special", False))
            for token, one in new.items()
        }

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        return np.array(self._processor.Encode(text), np.int32)

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        begin = self._processor.bos_id()
        return (begin,) if begin >= 0 else ()

    def token_to_id(self, text: str) -> int | None:
        if text in self._added:
            return self._added[text][0]
        token = self._processor.PieceToId(text)
        return None if token == self._processor.unk_id() else token


def parse_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """What a file of JSON says; nothing if it is not there."""
    try:
        said = json.loads(files.get(name, b"{}"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{name} is not JSON: {error}. It is damaged or of another kind: take it"
            " from where it is whole."
        ) from None
    if not isinstance(said, dict):
        raise ConfigError(f"{name} must hold a JSON object, {{...}}, and does not.")
    return said
