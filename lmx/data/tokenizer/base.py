"""Text to numbers and back, without loss."""

import codecs
import functools
import hashlib
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError, configurable
from lmx.core.files import write_atomic
from lmx.data.corpus.corpus import SPLITS, Corpus

BYTES = tuple(bytes([value]) for value in range(256))
DESCRIPTION, SENTENCEPIECE_FILE = (
    "tokenizer.json",
    "tokenizer.model",
)  # files of a run's folder
TOKENIZER_DIR = "tokenizer"  # of a run, where files of others keep their names


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tokenizer(ABC):
    """A tokenizer that is ready: `decode(encode(text)) == text` for any text."""

    vocab_bytes: tuple[bytes, ...]  # what each token stands for, nothing for specials
    bos: int | None = None  # comes before every document, where there is one
    eos: int | None = None  # comes after every document, where there is one

    @abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """The tokens of the text, without begin and end.

        Text with half a surrogate pair is refused: no byte stands for it.
        """

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what decides the tokens."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what `load` needs."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens at which a generated text ends."""
        return () if self.eos is None else (self.eos,)

    @property
    def hf_files(self) -> Mapping[str, bytes]:
        """Its files, as a folder of Hugging Face transformers has them, if any."""
        return {}

    @property
    def vocab(self) -> int:
        """V, one more than the largest token."""
        return len(self.vocab_bytes)

    @functools.cached_property
    def token_bytes(self) -> Int32[np.ndarray, " V"]:
        """UTF-8 bytes that each token stands for, 0 for specials."""
        return np.array([len(piece) for piece in self.vocab_bytes], np.int32)

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        said = b"".join(token_to_bytes(token, self.vocab_bytes) for token in tokens)
        return said.decode(errors="replace")

    def stream(self) -> "StreamDecoder":
        """A decoder that takes tokens one by one."""
        return StreamDecoder(self.vocab_bytes)


class StreamDecoder:
    """Text as its tokens come: what is said never has to be taken back."""

    def __init__(self, pieces: tuple[bytes, ...]):
        self._vocab_bytes = pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: SupportsIndex) -> str:
        """The characters that this token completes."""
        return self._bytes.decode(token_to_bytes(token, self._vocab_bytes))

    def flush(self) -> str:
        """What stays when no token will come: U+FFFD for a character cut short."""
        return self._bytes.decode(b"", final=True)


def token_to_bytes(token: SupportsIndex, vocab_bytes: tuple[bytes, ...]) -> bytes:
    """What a token stands for: nothing, where a model has more tokens than text."""
    return vocab_bytes[token] if operator.index(token) < len(vocab_bytes) else b""


def encode_utf8(text: str) -> bytes:
    """The bytes of the text; a refusal that names what is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"U+{ord(text[error.start]):04X} at character {error.start} of a text is"
            " half a surrogate pair and no character, so that no token stands for it:"
            " leave it out, or repair what the text came from."
        ) from None


class TokenizerConfig(ABC):
    """How text is to be cut into tokens."""

    @abstractmethod
    def open(self, corpus: Corpus) -> Tokenizer:
        """The tokenizer for that corpus, trained if need be."""


@configurable
@dataclass(frozen=True, kw_only=True)
class ByteTokenizer(TokenizerConfig):
    """The 256 bytes of UTF-8, and a token that begins and one that ends documents."""

    def open(self, corpus: Corpus) -> "ByteCodec":
        """The same for any corpus."""
        return ByteCodec()


@configurable
@dataclass(frozen=True, kw_only=True)
class CharTokenizer(TokenizerConfig):
    """The characters of the whole corpus, both splits, in order; no other tokens.

    As nanoGPT does for its Shakespeare.
    """

    def open(self, corpus: Corpus) -> "CharacterCodec":
        """One pass over the corpus, to see which characters there are."""
        found: set[str] = set()
        for split in SPLITS:
            for _, text in corpus.read(split):
                found.update(text)
        if not found:
            raise ConfigError(f"{corpus} is empty: it has no character to learn.")
        return CharacterCodec(characters="".join(sorted(found)))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ByteCodec(Tokenizer):
    """Bytes, then begin, then end."""

    vocab_bytes: tuple[bytes, ...] = (*BYTES, b"", b"")
    bos: int | None = len(BYTES)
    eos: int | None = len(BYTES) + 1

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.frombuffer(encode_utf8(text), np.uint8).astype(np.int32)

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"bytes").hexdigest()

    def save(self, folder: Path) -> None:
        write_atomic(folder / DESCRIPTION, json.dumps({"kind": "bytes"}).encode())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CharacterCodec(Tokenizer):
    """A token for each of the characters, which are in order and all different."""

    characters: str
    vocab_bytes: tuple[bytes, ...] = ()

    def __post_init__(self):
        pieces = tuple(character.encode() for character in self.characters)
        object.__setattr__(self, "pieces", pieces)

    @functools.cached_property
    def code_points(self) -> np.ndarray:
        """The code point of each token."""
        return _code_points(self.characters)

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        points = _code_points(text)
        tokens = np.searchsorted(self.code_points, points)
        known = (
            self.code_points[np.minimum(tokens, len(self.code_points) - 1)] == points
        )
        if not known.all():
            character = text[int(known.argmin())]
            raise ConfigError(
                f"{character!r} (U+{ord(character):04X}) is none of the"
                f" {self.vocab} characters of the corpus: leave it out, or use a"
                " tokenizer that knows all text, @ByteTokenizer() or @SentencePiece()."
            )
        return tokens.astype(np.int32)

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"characters" + self.characters.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        content = {"kind": "characters", "characters": self.characters}
        write_atomic(folder / DESCRIPTION, json.dumps(content).encode())


def load(folder: Path) -> Tokenizer:
    """The tokenizer that was saved in the folder."""
    if (folder / TOKENIZER_DIR).is_dir():
        from lmx.data.tokenizer.hf_folder import load_saved

        return load_saved(folder / TOKENIZER_DIR)
    if (folder / SENTENCEPIECE_FILE).is_file():
        from lmx.data.tokenizer.sentencepiece import PieceCodec

        return PieceCodec(model=(folder / SENTENCEPIECE_FILE).read_bytes())
    if not (folder / DESCRIPTION).is_file():
        raise ConfigError(
            f"{folder} has neither {SENTENCEPIECE_FILE} nor {DESCRIPTION}: give the folder of a run."
        )
    content = json.loads((folder / DESCRIPTION).read_text())
    if content["kind"] == "bytes":
        return ByteCodec()
    if content["kind"] == "characters":
        return CharacterCodec(characters=content["characters"])
    raise ConfigError(
        f"{folder / DESCRIPTION} holds {content['kind']!r}: this lmx knows 'bytes' and"
        " 'characters', so it was written by another."
    )


def _code_points(text: str) -> np.ndarray:
    """The code points of the text."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
