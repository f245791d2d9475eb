"""Loads the tokenizer of a run or a token store."""

from pathlib import Path

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import (
    SETTINGS,
    TOKENIZER_DIR,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
)
from lmx.data.tokenizer.byte_bpe import BPETokenizer
from lmx.data.tokenizer.external import parse_json
from lmx.data.tokenizer.hf_json import HFTokenizer
from lmx.data.tokenizer.sentencepiece import SentencePieceTokenizer

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
