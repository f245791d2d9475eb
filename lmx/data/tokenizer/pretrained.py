"""Tokenizers that were trained elsewhere, by the place of their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmx.config.registry import ConfigError, Execution, configurable
from lmx.data.corpus.corpus import Corpus
from lmx.data.tokenizer.base import (
    DESCRIPTION,
    SENTENCEPIECE_FILE,
    TOKENIZER_DIR,
    Tokenizer,
    TokenizerConfig,
    load,
)
from lmx.data.tokenizer.external import (
    SENTENCEPIECE_MODEL,
    FileCodec,
    SentencePieceTokenizer,
)
from lmx.data.tokenizer.hf_folder import load_hf_folder
from lmx.data.tokenizer.hf_json import TOKENIZER_JSON, HFTokenizer
from lmx.data.tokenizer.pretokenize import PretokenizerName
from lmx.data.tokenizer.tiktoken import load_tiktoken


@configurable
@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(TokenizerConfig):
    """A SentencePiece `.model`, a `tokenizer.json`, or a folder that has a tokenizer.

    A folder is one of Hugging Face transformers, a run, or what `lmx data tokenizer`
    wrote. Where the tokenizer lies changes nothing; what it is does, through the digest
    that every store and run records.

    Attributes:
        begin: the special token before each document; None: what its files say.
        end: the one after it.
    """

    path: Execution[str]
    bos: str | None = None
    eos: str | None = None

    def open(self, corpus: Corpus) -> Tokenizer:
        """Read from its files; the corpus does not matter."""
        path = Path(self.path).expanduser()
        try:
            return self._load_folder(path) if path.is_dir() else self._load_file(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _load_folder(self, path: Path) -> Tokenizer:
        if self.bos is not None or self.eos is not None:
            raise ConfigError("a folder says itself what begins and ends: name a file.")
        if (path / TOKENIZER_DIR).is_dir() or _described_by_lmx(path):
            return load(path)
        if (path / SENTENCEPIECE_FILE).is_file() and not (
            path / "config.json"
        ).is_file():
            return load(path)
        codec = load_hf_folder(path, {})
        if codec is None:
            raise ConfigError(
                f"the folder has neither {TOKENIZER_JSON} nor {SENTENCEPIECE_MODEL}."
            )
        return codec

    def _load_file(self, path: Path) -> FileCodec:
        file = _read(path)
        kinds = {
            ".json": (TOKENIZER_JSON, HFTokenizer),
            ".model": (SENTENCEPIECE_MODEL, SentencePieceTokenizer),
        }
        if path.suffix not in kinds:
            raise ConfigError(
                f"{' or '.join(kinds)} is what files of tokenizers end in; one of"
                " ranks, .tiktoken, is @Tiktoken()."
            )
        name, kind = kinds[path.suffix]
        files = {name: file}
        plain = kind(files=files)
        begin = next(iter(plain.prefix), None)
        if self.bos is not None:
            begin = lookup_token(plain, self.bos)
        end = None if self.eos is None else lookup_token(plain, self.eos)
        return kind(
            files=files, begin=begin, end=end, ends=() if end is None else (end,)
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class Tiktoken(TokenizerConfig):
    """A file of byte pairs by rank, `.tiktoken`, and what it does not say.

    Attributes:
        words: how text is cut into words, as the model's publisher names it.
        specials: special tokens and their numbers.
        begin: the special token before each document, if any.
        end: the one after it, if any.
    """

    path: Execution[str]
    pretokenizer: PretokenizerName
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    bos: str | None = None
    eos: str | None = None

    def open(self, corpus: Corpus) -> Tokenizer:
        """Read from its file; the corpus does not matter."""
        path = Path(self.path).expanduser()
        try:
            return self._load(_read(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _load(self, file: bytes) -> Tokenizer:
        named = {"begin": self.bos, "end": self.eos}
        for field_, name in named.items():
            if name is not None and name not in self.special_tokens:
                raise ConfigError(
                    f"Tiktoken.{field_} is {name!r}, which is none of Tiktoken.special_tokens:"
                    f" {', '.join(self.special_tokens) or 'there are none'}."
                )
        ids = {key: self.special_tokens[name] for key, name in named.items() if name}
        ends = (ids["end"],) if "end" in ids else ()
        return load_tiktoken(
            file, self.pretokenizer, self.special_tokens, ends=ends, **ids
        )


def lookup_token(codec: FileCodec, name: str) -> int:
    """The token of that name."""
    if (token := codec.token_to_id(name)) is None:
        raise ConfigError(f"no token of the file is spelled {name!r}.")
    return token


def _read(path: Path) -> bytes:
    """The file, which must be there."""
    if not path.is_file():
        raise ConfigError("there is no such file.")
    return path.read_bytes()


def _described_by_lmx(path: Path) -> bool:
    """Whether the folder's description is that of `ByteTokenizer` or `CharTokenizer`."""
    file = path / DESCRIPTION
    return file.is_file() and file.read_bytes()[:8] == b'{"kind":'
