"""Loads tokenizers: of a run or a token store, or trained elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmx.config.registry import ConfigError, Execution, configurable
from lmx.data.corpus.corpus import Corpus
from lmx.data.tokenizer.base import (
    SETTINGS,
    TOKENIZER_DIR,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    TokenizerConfig,
    parse_json,
)
from lmx.data.tokenizer.byte_bpe import BPETokenizer
from lmx.data.tokenizer.hf_folder import load_hf_folder
from lmx.data.tokenizer.pretokenize import PretokenizerName
from lmx.data.tokenizer.sentencepiece import SENTENCEPIECE_FILE, SentencePieceTokenizer
from lmx.data.tokenizer.tiktoken import TIKTOKEN_FILE, parse_ranks
from lmx.data.tokenizer.tokenizer_json import TOKENIZER_JSON, HFTokenizer

CLASSES: dict[str, type[Tokenizer]] = {
    kind.__name__: kind
    for kind in (
        ByteTokenizer,
        CharTokenizer,
        BPETokenizer,
        HFTokenizer,
        SentencePieceTokenizer,
    )
}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to the folder."""
    path = folder / TOKENIZER_DIR
    if not (path / SETTINGS).is_file():
        raise ConfigError(
            f"{folder} has no {TOKENIZER_DIR}/{SETTINGS}: give the folder of a run, or"
            " of another output of lmx."
        )
    settings = parse_json({SETTINGS: (path / SETTINGS).read_bytes()}, SETTINGS)
    name = settings.pop("class", None)
    if name not in CLASSES:
        raise ConfigError(
            f"{path / SETTINGS} is of class {name!r}, and this version of lmx has"
            f" {', '.join(CLASSES)}: another version wrote it."
        )
    files = {name: (path / name).read_bytes() for name in settings.pop("files", ())}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return CLASSES[name](**values, **({"files": files} if files else {}))


@configurable
@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(TokenizerConfig):
    """A SentencePiece `.model`, a `tokenizer.json`, or a folder with a tokenizer.

    A folder is one of Hugging Face transformers, a run, or an output of `lmx data
    tokenizer`. The path is not part of a run's identity: the tokenizer's digest is.

    Attributes:
        bos: the special token before each document; None: as its files say.
        eos: the special token after each document; None: none, or that of the folder.
    """

    path: Execution[str]
    bos: str | None = None
    eos: str | None = None

    def open(self, corpus: Corpus) -> Tokenizer:
        """Reads its files. The corpus is not used."""
        path = Path(self.path).expanduser()
        try:
            return self._load_folder(path) if path.is_dir() else self._load_file(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _load_folder(self, path: Path) -> Tokenizer:
        if self.bos is not None or self.eos is not None:
            raise ConfigError(
                "the files of a folder set BOS and EOS: unset PretrainedTokenizer.bos"
                " and eos, or give the path of a file."
            )
        if (path / TOKENIZER_DIR / SETTINGS).is_file():
            return load_tokenizer(path)
        tokenizer = load_hf_folder(path, {})
        if tokenizer is None:
            raise ConfigError(
                f"the folder has neither {TOKENIZER_JSON} nor {SENTENCEPIECE_FILE}."
            )
        return tokenizer

    def _load_file(self, path: Path) -> Tokenizer:
        data = _read(path)
        kinds = {
            ".json": (TOKENIZER_JSON, HFTokenizer),
            ".model": (SENTENCEPIECE_FILE, SentencePieceTokenizer),
        }
        if path.suffix not in kinds:
            raise ConfigError(
                f"a tokenizer file ends in {' or '.join(kinds)}; for .tiktoken use"
                " @Tiktoken()."
            )
        name, kind = kinds[path.suffix]
        plain = kind(files={name: data})
        bos = next(iter(plain.prefix_tokens), None)
        if self.bos is not None:
            bos = _find_token(plain, self.bos)
        eos = None if self.eos is None else _find_token(plain, self.eos)
        stop_tokens = () if eos is None else (eos,)
        return kind(files=plain.files, bos=bos, eos=eos, stop_tokens=stop_tokens)


@configurable
@dataclass(frozen=True, kw_only=True)
class Tiktoken(TokenizerConfig):
    """A `.tiktoken` file of byte strings by rank, and what it does not contain.

    Attributes:
        pretokenizer: how text is split into words, as the model's publisher says.
        special_tokens: their numbers by name.
        bos: the special token before each document; None: none.
        eos: the special token after each document; None: none.
    """

    path: Execution[str]
    pretokenizer: PretokenizerName
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    bos: str | None = None
    eos: str | None = None

    def open(self, corpus: Corpus) -> Tokenizer:
        """Reads its file. The corpus is not used."""
        path = Path(self.path).expanduser()
        try:
            return self._load(_read(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _load(self, data: bytes) -> Tokenizer:
        for name, value in (("bos", self.bos), ("eos", self.eos)):
            if value is not None and value not in self.special_tokens:
                raise ConfigError(
                    f"Tiktoken.{name} is {value!r}, which is not one of"
                    f" Tiktoken.special_tokens: {', '.join(self.special_tokens)}."
                )
        bos, eos = (
            self.special_tokens.get(name or "") for name in (self.bos, self.eos)
        )
        tokens = {*parse_ranks(data).values()}
        for name, token in self.special_tokens.items():
            if token in tokens or token < 0:
                raise ConfigError(
                    f"the special token {name!r} has the number {token}, which must be"
                    f" at least 0 and not in use: the file uses numbers up to"
                    f" {max(tokens)}."
                )
        return BPETokenizer(
            files={TIKTOKEN_FILE: data},
            pretokenizer=self.pretokenizer,
            special_tokens=dict(self.special_tokens),
            bos=bos,
            eos=eos,
            stop_tokens=() if eos is None else (eos,),
        )


def _find_token(tokenizer: Tokenizer, text: str) -> int:
    if (token := tokenizer.token_to_id(text)) is None:
        raise ConfigError(f"the file has no token {text!r}.")
    return token


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError("there is no such file.")
    return path.read_bytes()
