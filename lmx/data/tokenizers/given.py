"""Tokenizers that were trained elsewhere, by the place of their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmx.config.names import ConfigError, Execution, configurable
from lmx.data.corpora.corpus import Corpus
from lmx.data.tokenizers.codec import DESCRIPTION, FOLDER, MODEL, Codec, Tokenizer, load
from lmx.data.tokenizers.fast import FAST, FastCodec
from lmx.data.tokenizers.file import SENTENCE, FileCodec, SentenceCodec
from lmx.data.tokenizers.folder import open_folder
from lmx.data.tokenizers.ranks import open_ranks
from lmx.data.tokenizers.words import Words


@configurable
@dataclass(frozen=True, kw_only=True)
class Given(Tokenizer):
    """A SentencePiece `.model`, a `tokenizer.json`, or a folder that has a tokenizer.

    A folder is one of Hugging Face transformers, a run, or what `lmx data tokenizer`
    wrote. Where the tokenizer lies changes nothing; what it is does, through the digest
    that every store and run records.

    Attributes:
        begin: the special token before each document; None: what its files say.
        end: the one after it.
    """

    path: Execution[str]
    begin: str | None = None
    end: str | None = None

    def open(self, corpus: Corpus) -> Codec:
        """Read from its files; the corpus does not matter."""
        path = Path(self.path).expanduser()
        try:
            return self._folder(path) if path.is_dir() else self._file(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _folder(self, path: Path) -> Codec:
        if self.begin is not None or self.end is not None:
            raise ConfigError("a folder says itself what begins and ends: name a file.")
        if (path / FOLDER).is_dir() or _described_by_lmx(path):
            return load(path)
        if (path / MODEL).is_file() and not (path / "config.json").is_file():
            return load(path)
        codec = open_folder(path, {})
        if codec is None:
            raise ConfigError(f"the folder has neither {FAST} nor {SENTENCE}.")
        return codec

    def _file(self, path: Path) -> FileCodec:
        file = _read(path)
        kinds = {".json": (FAST, FastCodec), ".model": (SENTENCE, SentenceCodec)}
        if path.suffix not in kinds:
            raise ConfigError(
                f"{' or '.join(kinds)} is what files of tokenizers end in; one of"
                " ranks, .tiktoken, is @Ranks()."
            )
        name, kind = kinds[path.suffix]
        files = {name: file}
        plain = kind(files=files)
        begin = next(iter(plain.prefix), None)
        if self.begin is not None:
            begin = known(plain, self.begin)
        end = None if self.end is None else known(plain, self.end)
        return kind(
            files=files, begin=begin, end=end, ends=() if end is None else (end,)
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class Ranks(Tokenizer):
    """A file of byte pairs by rank, `.tiktoken`, and what it does not say.

    Attributes:
        words: how text is cut into words, as the model's publisher names it.
        specials: special tokens and their numbers.
        begin: the special token before each document, if any.
        end: the one after it, if any.
    """

    path: Execution[str]
    words: Words
    specials: Mapping[str, int] = field(default_factory=dict)
    begin: str | None = None
    end: str | None = None

    def open(self, corpus: Corpus) -> Codec:
        """Read from its file; the corpus does not matter."""
        path = Path(self.path).expanduser()
        try:
            return self._opened(_read(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _opened(self, file: bytes) -> Codec:
        named = {"begin": self.begin, "end": self.end}
        for field_, name in named.items():
            if name is not None and name not in self.specials:
                raise ConfigError(
                    f"Ranks.{field_} is {name!r}, which is none of Ranks.specials:"
                    f" {', '.join(self.specials) or 'there are none'}."
                )
        ids = {key: self.specials[name] for key, name in named.items() if name}
        ends = (ids["end"],) if "end" in ids else ()
        return open_ranks(file, self.words, self.specials, ends=ends, **ids)


def known(codec: FileCodec, name: str) -> int:
    """The token of that name."""
    if (token := codec.token(name)) is None:
        raise ConfigError(f"no token of the file is spelled {name!r}.")
    return token


def _read(path: Path) -> bytes:
    """The file, which must be there."""
    if not path.is_file():
        raise ConfigError("there is no such file.")
    return path.read_bytes()


def _described_by_lmx(path: Path) -> bool:
    """Whether the folder's description is that of `Bytes` or `Characters`."""
    file = path / DESCRIPTION
    return file.is_file() and file.read_bytes()[:8] == b'{"kind":'
