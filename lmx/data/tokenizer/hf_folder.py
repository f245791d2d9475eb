"""The tokenizer of a Hugging Face folder, with its BOS and EOS."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import FileTokenizer, parse_json
from lmx.data.tokenizer.sentencepiece import (
    ADDED_TOKENS,
    SENTENCEPIECE_FILE,
    TOKENIZER_CONFIG,
    SentencePieceTokenizer,
)
from lmx.data.tokenizer.tokenizer_json import TOKENIZER_JSON, HFTokenizer

HF_FILES = (
    TOKENIZER_JSON, SENTENCEPIECE_FILE, TOKENIZER_CONFIG, ADDED_TOKENS,
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def load_hf_folder(path: Path, model_config: Mapping[str, Any]) -> FileTokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has none.

    `eos_token_id` of the model's config adds stop tokens, and is EOS if the tokenizer's
    files name none.
    """
    paths = [path / name for name in HF_FILES]
    files = {p.name: p.read_bytes() for p in paths if p.is_file()}
    if not files.keys() & {TOKENIZER_JSON, SENTENCEPIECE_FILE}:
        if "vocab.json" in files:
            raise ConfigError(
                f"{path} has a tokenizer in an old format, without {TOKENIZER_JSON}:"
                " load and save it with AutoTokenizer of transformers."
            )
        return None
    kind = HFTokenizer if TOKENIZER_JSON in files else SentencePieceTokenizer
    plain, config = kind(files=files), parse_json(files, TOKENIZER_CONFIG)
    bos = next(iter(plain.prefix_tokens), None)
    if "add_bos_token" in config:
        adds_bos = config["add_bos_token"]
        bos = _find_token(plain, config.get("bos_token")) if adds_bos else None
    ids = model_config.get("eos_token_id")
    stops = tuple(ids) if isinstance(ids, list | tuple) else (ids,)
    eos = _find_token(plain, config.get("eos_token"))
    eos = stops[0] if eos is None else eos
    stop_tokens = sorted({token for token in (eos, *stops) if token is not None})
    return kind(files=files, bos=bos, eos=eos, stop_tokens=tuple(stop_tokens))


def _find_token(
    tokenizer: FileTokenizer, entry: str | Mapping[str, Any] | None
) -> int | None:
    """The token of an entry of tokenizer_config.json, a text or an object with one."""
    text = entry["content"] if isinstance(entry, Mapping) else entry
    return None if text is None else tokenizer.token_to_id(text)
