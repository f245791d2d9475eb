"""The tokenizer of a Hugging Face folder: which files, and what begins and ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.byte_bpe import load_bpe
from lmx.data.tokenizer.external import (
    ADDED_TOKENS,
    IDS,
    SENTENCEPIECE_MODEL,
    TOKENIZER_CONFIG,
    FileCodec,
    SentencePieceTokenizer,
    parse_json,
)
from lmx.data.tokenizer.hf_json import TOKENIZER_JSON, HFTokenizer
from lmx.data.tokenizer.tiktoken import TIKTOKEN_FILE, load_tiktoken

HF_FILES = (
    TOKENIZER_JSON, SENTENCEPIECE_MODEL, TOKENIZER_CONFIG, ADDED_TOKENS, "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def load_hf_folder(path: Path, model_config: Mapping[str, Any]) -> FileCodec | None:
    """The tokenizer of a Hugging Face folder; None if it has none.

    `said` is what the model's own files say of `eos_token_id`, used where the
    tokenizer's are silent.
    """
    files = {name: (path / name).read_bytes() for name in _list_files(path)}
    if not files.keys() & {TOKENIZER_JSON, SENTENCEPIECE_MODEL}:
        if "vocab.json" in files:
            raise ConfigError(
                f"{path} has a tokenizer in an old form, without {TOKENIZER_JSON}: load and save"
                " it with transformers' AutoTokenizer first."
            )
        return None
    codec, about = _build(files), parse_json(files, TOKENIZER_CONFIG)
    begin = next(iter(codec.prefix_tokens), None)
    if "add_bos_token" in about:
        begin = (
            _token_id(codec, about.get("bos_token")) if about["add_bos_token"] else None
        )
    stops = model_config.get("eos_token_id")
    stops = tuple(stops) if isinstance(stops, list | tuple) else (stops,)
    end = _token_id(codec, about.get("eos_token"))
    end = stops[0] if end is None else end
    ends = sorted({token for token in (end, *stops) if token is not None})
    return _build(files, begin=begin, end=end, ends=tuple(ends))


def load_saved(path: Path) -> FileCodec:
    """What `FileCodec.save` wrote."""
    ids = parse_json({IDS: (path / IDS).read_bytes()}, IDS)
    files = {
        name: (path / name).read_bytes() for name in _list_files(path, TIKTOKEN_FILE)
    }
    return _build(files, **ids | {"ends": tuple(ids["ends"])})


def _build(files: Mapping[str, bytes], **ids: Any) -> FileCodec:
    if TIKTOKEN_FILE in files:
        return load_tiktoken(files[TIKTOKEN_FILE], **ids)
    if "words" in ids:
        return load_bpe(files[TOKENIZER_JSON], **ids)
    kind = HFTokenizer if TOKENIZER_JSON in files else SentencePieceTokenizer
    return kind(files=files, **ids)


def _list_files(path: Path, *others: str) -> list[str]:
    return [name for name in (*HF_FILES, *others) if (path / name).is_file()]


def _token_id(codec: FileCodec, said: str | Mapping[str, Any] | None) -> int | None:
    """The token that a tokenizer_config.json names, by its text or by all about it."""
    text = said["content"] if isinstance(said, Mapping) else said
    return None if text is None else codec.token_to_id(text)
