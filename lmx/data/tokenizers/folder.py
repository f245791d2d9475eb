"""The tokenizer of a Hugging Face folder: which files, and what begins and ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.config.names import ConfigError
from lmx.data.tokenizers.fast import FAST, FastCodec
from lmx.data.tokenizers.file import (
    ABOUT,
    ADDED,
    IDS,
    SENTENCE,
    FileCodec,
    SentenceCodec,
    content,
)
from lmx.data.tokenizers.pairs import opened
from lmx.data.tokenizers.ranks import RANKS, open_ranks

FILES = (
    FAST, SENTENCE, ABOUT, ADDED, "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def open_folder(path: Path, said: Mapping[str, Any]) -> FileCodec | None:
    """The tokenizer of a Hugging Face folder; None if it has none.

    `said` is what the model's own files say of `eos_token_id`, used where the
    tokenizer's are silent.
    """
    files = {name: (path / name).read_bytes() for name in _there(path)}
    if not files.keys() & {FAST, SENTENCE}:
        if "vocab.json" in files:
            raise ConfigError(
                f"{path} has a tokenizer in an old form, without {FAST}: load and save"
                " it with transformers' AutoTokenizer first."
            )
        return None
    codec, about = _codec(files), content(files, ABOUT)
    begin = next(iter(codec.prefix), None)
    if "add_bos_token" in about:
        begin = (
            _token(codec, about.get("bos_token")) if about["add_bos_token"] else None
        )
    stops = said.get("eos_token_id")
    stops = tuple(stops) if isinstance(stops, list | tuple) else (stops,)
    end = _token(codec, about.get("eos_token"))
    end = stops[0] if end is None else end
    ends = sorted({token for token in (end, *stops) if token is not None})
    return _codec(files, begin=begin, end=end, ends=tuple(ends))


def load_folder(path: Path) -> FileCodec:
    """What `FileCodec.save` wrote."""
    ids = content({IDS: (path / IDS).read_bytes()}, IDS)
    files = {name: (path / name).read_bytes() for name in _there(path, RANKS)}
    return _codec(files, **ids | {"ends": tuple(ids["ends"])})


def _codec(files: Mapping[str, bytes], **ids: Any) -> FileCodec:
    if RANKS in files:
        return open_ranks(files[RANKS], **ids)
    if "words" in ids:
        return opened(files[FAST], **ids)
    kind = FastCodec if FAST in files else SentenceCodec
    return kind(files=files, **ids)


def _there(path: Path, *others: str) -> list[str]:
    return [name for name in (*FILES, *others) if (path / name).is_file()]


def _token(codec: FileCodec, said: str | Mapping[str, Any] | None) -> int | None:
    """The token that a tokenizer_config.json names, by its text or by all about it."""
    text = said["content"] if isinstance(said, Mapping) else said
    return None if text is None else codec.token(text)
