"""Loads tokenizers: of a run or a token store, or trained elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmx.config.coerce import coerce_field
from lmx.config.json_object import parse_object
from lmx.config.registry import (
    ConfigError,
    configurable,
    require,
)
from lmx.data.tokenizer.base import (
    SETTINGS,
    TOKENIZER_DIR,
    ByteTokenizer,
    CharTokenizer,
    FileTokenizer,
    Tokenizer,
    TokenizerFile,
    parse_json,
    read_tokenizer_file,
)
from lmx.data.tokenizer.sentencepiece import (
    ADDED_TOKENS,
    SENTENCEPIECE_FILE,
    TOKENIZER_CONFIG,
    SentencePieceTokenizer,
)
from lmx.data.tokenizer.tokenizer_json import TOKENIZER_JSON, HFTokenizer

SETTINGS_KINDS = {
    "class": str,
    "files": tuple[str, ...] | None,
    "bos": int | None,
    "eos": int | None,
    "stop_tokens": tuple[int, ...] | None,
    "strip_leading_space": bool | None,
}
CLASSES: dict[str, type[Tokenizer]] = {
    kind.__name__: kind
    for kind in (ByteTokenizer, CharTokenizer, HFTokenizer, SentencePieceTokenizer)
}
HF_FILES = (
    TOKENIZER_JSON, SENTENCEPIECE_FILE, TOKENIZER_CONFIG, ADDED_TOKENS,
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to the folder."""
    path = folder / TOKENIZER_DIR
    require(
        (path / SETTINGS).is_file(),
        f"{folder} has no {TOKENIZER_DIR}/{SETTINGS}: give the folder of a run, or of"
        " another output of lmx.",
    )
    content = (path / SETTINGS).read_bytes()
    settings = parse_object(content, path / SETTINGS, SETTINGS_KINDS)
    name = settings.pop("class")
    require(
        name in CLASSES,
        f"{path / SETTINGS} is of class {name!r}, and this version of lmx has"
        f" {', '.join(CLASSES)}: another version wrote it.",
    )
    names = settings.pop("files", None) or ()
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        files = {x: (path / Path(x).name).read_bytes() for x in names}
        return CLASSES[name](**values, **({"files": files} if files else {}))
    except (OSError, TypeError) as error:  # the latter of an unknown setting
        raise ConfigError(f"{path / SETTINGS} does not fit: {error}.") from None


def load_hf_folder(path: Path, model_config: Mapping[str, Any]) -> FileTokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has none.

    `eos_token_id` of the model's config adds stop tokens, and is EOS if the tokenizer's
    files name none.
    """
    paths = [path / name for name in HF_FILES]
    files = {p.name: p.read_bytes() for p in paths if p.is_file()}
    if not files.keys() & {TOKENIZER_JSON, SENTENCEPIECE_FILE}:
        require(
            "vocab.json" not in files,
            f"{path} has a tokenizer in an old format, without {TOKENIZER_JSON}: load"
            " and save it with AutoTokenizer of transformers.",
        )
        return None
    tokenizer, config = _load_files(files), parse_json(files, TOKENIZER_CONFIG)
    bos = tokenizer.bos
    if config.get("add_bos_token") is not None:
        adds_bos = config["add_bos_token"]
        bos = _find_token(tokenizer, config.get("bos_token")) if adds_bos else None
    kind, ids = int | tuple[int, ...] | None, model_config.get("eos_token_id")
    ids = coerce_field(ids, kind, "eos_token_id", path / "config.json")
    stops = ids if isinstance(ids, tuple) else (ids,)
    ends = (_find_token(tokenizer, config.get("eos_token")), *stops, tokenizer.eos)
    eos = next((token for token in ends if token is not None), None)
    stop_tokens = sorted({token for token in (eos, *stops) if token is not None})
    return replace(tokenizer, bos=bos, eos=eos, stop_tokens=tuple(stop_tokens))


def _load_files(files: Mapping[str, bytes]) -> FileTokenizer:
    """A tokenizer with the BOS that its files put before every text, and their EOS."""
    kind = HFTokenizer if TOKENIZER_JSON in files else SentencePieceTokenizer
    tokenizer = kind(files=files)
    bos = next(iter(tokenizer.prefix_tokens), None)
    return replace(tokenizer, bos=bos, eos=tokenizer.end_token)


def _find_token(tokenizer: FileTokenizer, entry: Any) -> int | None:
    """The token of an entry of tokenizer_config.json, a text or an object with one."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    require(
        text is None or isinstance(text, str),
        f"{TOKENIZER_CONFIG} has the token {entry!r}: it must be a text, or an object"
        " with its text as content.",
    )
    return None if text is None else tokenizer.token_to_id(text)


@configurable
@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(TokenizerFile):
    """A SentencePiece `.model`, a `tokenizer.json`, or a folder with a tokenizer.

    A folder is one of Hugging Face transformers, a run, or an output of `lmx data
    tokenizer`. The path is not part of a run's identity: the tokenizer's digest is.

    Attributes:
        bos: the special token before each document; None: as its files say.
        eos: the special token after each document; None: as its files say.
    """

    def load(self, path: Path) -> Tokenizer:
        return self._load_folder(path) if path.is_dir() else self._load_file(path)

    def _load_folder(self, path: Path) -> Tokenizer:
        require(
            self.bos is None and self.eos is None,
            "the files of a folder set BOS and EOS: unset PretrainedTokenizer.bos and"
            " eos, or give the path of a file.",
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
        data = read_tokenizer_file(path)
        names = {".json": TOKENIZER_JSON, ".model": SENTENCEPIECE_FILE}
        require(
            path.suffix in names,
            f"a tokenizer file ends in {' or '.join(names)}; for .tiktoken use"
            " @Tiktoken().",
        )
        tokenizer = _load_files({names[path.suffix]: data})
        for text in (self.bos, self.eos):
            is_known = text is None or tokenizer.token_to_id(text) is not None
            require(is_known, f"the file has no token {text!r}.")
        bos, eos = _find_token(tokenizer, self.bos), _find_token(tokenizer, self.eos)
        return replace(
            tokenizer,
            bos=tokenizer.bos if bos is None else bos,
            eos=tokenizer.eos if eos is None else eos,
            stop_tokens=tuple(x for x in (eos, tokenizer.eos) if x is not None)[:1],
        )
