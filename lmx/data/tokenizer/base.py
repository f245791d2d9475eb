"""Tokenizers: lossless conversion between text and tokens."""

import codecs
import functools
import hashlib
import itertools
import json
import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex, cast

import numpy as np
from jaxtyping import Int32

from lmx.config.json_object import WRONG_KIND, parse_object
from lmx.config.registry import (
    ConfigError,
    Execution,
    check_fields,
    configurable,
    require,
)
from lmx.core.console import print_line
from lmx.core.files import get_cache_path, write_atomic
from lmx.data.corpus.corpus import SPLITS, Corpus

MAX_VOCAB = 2_000_000  # tokens
BYTES = tuple(bytes([value]) for value in range(256))
TOKENIZER_DIR = "tokenizer"  # of a run or a token store
SETTINGS = "lmx_tokenizer.json"  # in it: the class, and what its files do not say


class Tokenizer(ABC):
    """A tokenizer: `decode(encode(text)) == text` for any text.

    Subclasses are dataclasses. Their fields are what identifies them: `files`, and
    settings that JSON can hold.

    Attributes:
        files: by name, as in a Hugging Face folder, whose library can read them.
        bos: the token before every document; None: none.
        eos: the token after every document; None: none.
        stop_tokens: tokens at which generation ends.
        strip_leading_space: whether `encode` adds a space before a text, which `decode`
            removes.
    """

    files: Mapping[str, bytes]
    bos: int | None = None
    eos: int | None = None
    stop_tokens: tuple[int, ...] = ()
    strip_leading_space: bool = False

    @property
    @abstractmethod
    def vocab_bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes of each token; empty for special tokens."""

    @abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """The tokens of a text, without BOS and EOS.

        Text with an unpaired surrogate is refused, since it has no UTF-8 form.
        """

    def token_to_id(self, text: str) -> int | None:
        """The token with that spelling, special ones included; None: there is none."""
        return None

    @property
    def vocab(self) -> int:
        """V, one more than the largest token."""
        return len(self.vocab_bytes)

    @functools.cached_property
    def token_bytes(self) -> Int32[np.ndarray, " V"]:
        """The number of UTF-8 bytes of each token, 0 for special tokens."""
        return np.array([len(text) for text in self.vocab_bytes], np.int32)

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of the tokens. Invalid UTF-8 becomes U+FFFD."""
        vocab = self.vocab_bytes
        data = b"".join(token_to_bytes(token, vocab) for token in tokens)
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if self.strip_leading_space else text

    def decode_after(
        self, prompt: Sequence[SupportsIndex], tokens: Sequence[SupportsIndex]
    ) -> str:
        """The text that tokens add to a prompt, with a space that they begin with."""
        return self.decode([*prompt, *tokens])[len(self.decode(prompt)) :]

    def stream(self) -> "StreamDecoder":
        return StreamDecoder(self.vocab_bytes)

    @property
    def settings(self) -> dict[str, Any]:
        """The class and its fields without the files, as JSON."""
        names = (f.name for f in fields(cast(Any, self)) if f.name != "files")
        return {"class": type(self).__name__} | {n: getattr(self, n) for n in names}

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the tokens."""
        settings = {k: v for k, v in self.settings.items() if k != "stop_tokens"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name in sorted(self.files):
            digest.update(name.encode() + hashlib.sha256(self.files[name]).digest())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes its files to a subfolder, for `load_tokenizer`."""
        (folder / TOKENIZER_DIR).mkdir(exist_ok=True)
        settings = json.dumps({**self.settings, "files": list(self.files)})
        for name, data in {**self.files, SETTINGS: settings.encode()}.items():
            write_atomic(folder / TOKENIZER_DIR / name, data)


class StreamDecoder:
    """Decodes tokens one by one, and returns only complete characters."""

    def __init__(self, vocab_bytes: tuple[bytes, ...]):
        self._vocab_bytes = vocab_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: SupportsIndex) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(token_to_bytes(token, self._vocab_bytes))

    def flush(self) -> str:
        """What is left after the last token: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)


def token_to_bytes(token: SupportsIndex, vocab_bytes: tuple[bytes, ...]) -> bytes:
    """The bytes of a token; empty for tokens that only the model has."""
    return vocab_bytes[token] if operator.index(token) < len(vocab_bytes) else b""


def encode_utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text. Refuses unpaired surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"U+{ord(text[error.start]):04X} at character {error.start} of a text is an"
            " unpaired surrogate, which UTF-8 cannot encode: remove it, or repair the"
            " source of the text."
        ) from None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FileTokenizer(Tokenizer):
    """A tokenizer that files define. They are stored unchanged.

    For files of others, `decode(encode(text)) == text` if their normalization leaves
    the text unchanged and it spells no special token.
    """

    files: Mapping[str, bytes]
    bos: int | None = None
    eos: int | None = None
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        try:  # refuses damaged files now
            _ = self.vocab_bytes, self.prefix_tokens, self.strip_leading_space
            self.token_to_id("")
        except ConfigError:
            raise
        except WRONG_KIND as error:
            raise ConfigError(
                f"{', '.join(self.files)} has a value of a wrong kind ({error!r}):"
                " restore the file from its source."
            ) from error

    @property
    @abstractmethod
    def prefix_tokens(self) -> tuple[int, ...]:
        """The tokens that its files put before every text."""

    @property
    def end_token(self) -> int | None:
        """The EOS that its vocabulary defines; None: it has no such entry."""
        return None


def read_tokenizer_file(path: Path) -> bytes:
    """The content of a file; refuses a missing one."""
    require(path.is_file(), "there is no such file.")
    return path.read_bytes()


def list_vocab(tokens: Iterable[tuple[int, bytes]]) -> tuple[bytes, ...]:
    """The bytes of all tokens in order; empty for missing ids. Later entries win."""
    pairs = [*tokens]
    wrong = [token for token, _ in pairs if type(token) is not int or token < 0]
    require(not wrong, f"the ids {wrong[:8]} of tokens must be whole numbers from 0.")
    bytes_of = dict(pairs)
    largest = max(bytes_of)
    require(largest < MAX_VOCAB, f"token {largest}: ids must be below {MAX_VOCAB:,}.")
    return tuple(bytes_of.get(token, b"") for token in range(largest + 1))


def parse_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The content of a JSON file; an empty object if the file is missing."""
    return parse_object(files.get(name, b"{}"), name)


def load_or_train(
    corpus: Corpus, settings: tuple[str, ...], train: Callable[[Corpus], bytes]
) -> bytes:
    """The file of a tokenizer, from the cache or trained on the train split."""
    path = get_cache_path("tokenizers", corpus.compute_digest(), *settings)
    if not path.is_file():
        start = time.monotonic()
        write_atomic(path, train(corpus))
        print_line(f"trained the tokenizer in {time.monotonic() - start:.0f} s")
    return path.read_bytes()


class TokenizerConfig(ABC):
    """Configuration of a tokenizer."""

    @abstractmethod
    def open(self, corpus: Corpus) -> Tokenizer:
        """The tokenizer, trained on the corpus if it needs training."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(TokenizerConfig):
    """Configuration of a tokenizer that is not trained here, but read from a path."""

    path: Execution[str]
    bos: str | None = None
    eos: str | None = None

    @abstractmethod
    def load(self, path: Path) -> Tokenizer:
        """The tokenizer. Errors need not name the path."""

    def open(self, corpus: Corpus) -> Tokenizer:
        path = Path(self.path).expanduser()
        try:
            return self.load(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


@configurable
@dataclass(frozen=True, kw_only=True)
class ByteTokenizer(TokenizerConfig, Tokenizer):
    """The 256 bytes of UTF-8, then BOS, then EOS."""

    files = MappingProxyType({})
    bos = len(BYTES)
    eos = len(BYTES) + 1
    stop_tokens = (len(BYTES) + 1,)

    @property
    def vocab_bytes(self) -> tuple[bytes, ...]:
        return (*BYTES, b"", b"")

    def open(self, corpus: Corpus) -> Tokenizer:
        """Itself, for any corpus."""
        return self

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.frombuffer(encode_utf8(text), np.uint8).astype(np.int32)


@configurable
@dataclass(frozen=True, kw_only=True)
class CharTokenizer(TokenizerConfig, Tokenizer):
    """One token per character, and no other tokens.

    As nanoGPT does for its Shakespeare.

    Attributes:
        characters: in order of their code points; None: those of both splits of the
            corpus.
    """

    characters: str | None = None

    files = MappingProxyType({})

    def __post_init__(self):
        characters = self.characters
        is_valid = characters is None or "".join(sorted({*characters})) == characters
        rule = "each character once, in order of code points"
        check_fields(self, characters=(is_valid, rule))

    def open(self, corpus: Corpus) -> "CharTokenizer":
        """Reads the whole corpus, unless `characters` is set."""
        if self.characters is not None:
            return self
        texts = (text for split in SPLITS for _, text in corpus.read(split))
        characters = {*itertools.chain.from_iterable(texts)}
        require(characters, f"{corpus} is empty: it has no characters.")
        return replace(self, characters="".join(sorted(characters)))

    @functools.cached_property
    def vocab_bytes(self) -> tuple[bytes, ...]:
        return tuple(character.encode() for character in self.characters or "")

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        vocab, points = _code_points(self.characters or ""), _code_points(text)
        tokens = np.searchsorted(vocab, points)
        is_known = vocab[np.minimum(tokens, len(vocab) - 1)] == points
        if not is_known.all():
            character = text[int(is_known.argmin())]
            raise ConfigError(
                f"{character!r} (U+{ord(character):04X}) is not one of the"
                f" {self.vocab} characters of the tokenizer: remove it, or use a"
                " tokenizer for all text, @ByteTokenizer() or @SentencePiece()."
            )
        return tokens.astype(np.int32)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
