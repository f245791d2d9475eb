"""Base class of tokenizers that files define, such as those of Hugging Face."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import Tokenizer


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
        _ = self.vocab_bytes  # refuses damaged files now


def list_vocab(bytes_of: Mapping[int, bytes]) -> tuple[bytes, ...]:
    """The bytes of all tokens in order; empty for numbers that are missing."""
    return tuple(bytes_of.get(token, b"") for token in range(max(bytes_of) + 1))


def parse_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The content of a JSON file; an empty object if the file is missing."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{name} is not JSON: {error}. It is damaged or of another kind: restore it"
            " from its source."
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name} must hold a JSON object, {{...}}.")
    return content
