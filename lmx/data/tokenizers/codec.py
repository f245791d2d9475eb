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

from lmx.config.names import ConfigError, configurable
from lmx.data.cache import write_whole
from lmx.data.corpora.corpus import SPLITS, Corpus

BYTES = tuple(bytes([value]) for value in range(256))
DESCRIPTION, MODEL = "tokenizer.json", "tokenizer.model"  # files of a run's folder
FOLDER = "tokenizer"  # of a run, where files of others keep their names


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Codec(ABC):
    """A tokenizer that is ready: `decode(encode(text)) == text` for any text."""

    pieces: tuple[bytes, ...]  # what each token stands for, nothing for specials
    begin: int | None = None  # comes before every document, where there is one
    end: int | None = None  # comes after every document, where there is one

    @abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """The tokens of the text, without begin and end."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what decides the tokens."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what `load` needs."""

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens at which a generated text ends."""
        return () if self.end is None else (self.end,)

    @property
    def carried(self) -> Mapping[str, bytes]:
        """Its files, as a folder of Hugging Face transformers has them, if any."""
        return {}

    @property
    def vocab(self) -> int:
        """V, one more than the largest token."""
        return len(self.pieces)

    @functools.cached_property
    def token_bytes(self) -> Int32[np.ndarray, " V"]:
        """UTF-8 bytes that each token stands for, 0 for specials."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        said = b"".join(piece_of(token, self.pieces) for token in tokens)
        return said.decode(errors="replace")

    def stream(self) -> "Decoder":
        """A decoder that takes tokens one by one."""
        return Decoder(self.pieces)


class Decoder:
    """Text as its tokens come: what is said never has to be taken back."""

    def __init__(self, pieces: tuple[bytes, ...]):
        self._pieces = pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: SupportsIndex) -> str:
        """The characters that this token completes."""
        return self._bytes.decode(piece_of(token, self._pieces))

    def rest(self) -> str:
        """What stays when no token will come: U+FFFD for a character cut short."""
        return self._bytes.decode(b"", final=True)


def piece_of(token: SupportsIndex, pieces: tuple[bytes, ...]) -> bytes:
    """What a token stands for: nothing, where a model has more tokens than text."""
    return pieces[token] if operator.index(token) < len(pieces) else b""


class Tokenizer(ABC):
    """How text is to be cut into tokens."""

    @abstractmethod
    def open(self, corpus: Corpus) -> Codec:
        """The tokenizer for that corpus, trained if need be."""


@configurable
@dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """The 256 bytes of UTF-8, and a token that begins and one that ends documents."""

    def open(self, corpus: Corpus) -> "ByteCodec":
        """The same for any corpus."""
        return ByteCodec()


@configurable
@dataclass(frozen=True, kw_only=True)
class Characters(Tokenizer):
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
class ByteCodec(Codec):
    """Bytes, then begin, then end."""

    pieces: tuple[bytes, ...] = (*BYTES, b"", b"")
    begin: int | None = len(BYTES)
    end: int | None = len(BYTES) + 1

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"bytes").hexdigest()

    def save(self, folder: Path) -> None:
        write_whole(folder / DESCRIPTION, json.dumps({"kind": "bytes"}).encode())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CharacterCodec(Codec):
    """A token for each of the characters, which are in order and all different."""

    characters: str
    pieces: tuple[bytes, ...] = ()

    def __post_init__(self):
        pieces = tuple(character.encode() for character in self.characters)
        object.__setattr__(self, "pieces", pieces)

    @functools.cached_property
    def points(self) -> np.ndarray:
        """The code point of each token."""
        return _points(self.characters)

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        points = _points(text)
        tokens = np.searchsorted(self.points, points)
        known = self.points[np.minimum(tokens, len(self.points) - 1)] == points
        if not known.all():
            character = text[int(known.argmin())]
            raise ConfigError(
                f"{character!r} (U+{ord(character):04X}) is none of the"
                f" {self.vocab} characters of the corpus: leave it out, or use a"
                " tokenizer that knows all text, @Bytes() or @SentencePiece()."
            )
        return tokens.astype(np.int32)

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"characters" + self.characters.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        content = {"kind": "characters", "characters": self.characters}
        write_whole(folder / DESCRIPTION, json.dumps(content).encode())


def load(folder: Path) -> Codec:
    """The tokenizer that was saved in the folder."""
    if (folder / FOLDER).is_dir():
        from lmx.data.tokenizers.folder import load_folder

        return load_folder(folder / FOLDER)
    if (folder / MODEL).is_file():
        from lmx.data.tokenizers.pieces import PieceCodec

        return PieceCodec(model=(folder / MODEL).read_bytes())
    if not (folder / DESCRIPTION).is_file():
        raise ConfigError(
            f"{folder} has neither {MODEL} nor {DESCRIPTION}: give the folder of a run."
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


def _points(text: str) -> np.ndarray:
    """The code points of the text."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
