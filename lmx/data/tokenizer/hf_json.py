"""A tokenizer.json of Hugging Face, read without its library but to encode."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import encode_utf8
from lmx.data.tokenizer.bpe import ALPHABET, PRINTABLE
from lmx.data.tokenizer.external import FileCodec, parse_json
from lmx.data.tokenizer.sentencepiece import SPACE_SYMBOL

TOKENIZER_JSON = "tokenizer.json"
# Bytes that Latin-1 prints stand for themselves, the rest for U+0100 and on.
BYTE_OF_LETTER = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(ALPHABET[len(PRINTABLE) :])
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HFTokenizer(FileCodec):
    """A tokenizer.json. Only `encode` needs the library `tokenizers`."""

    vocab_bytes: tuple[bytes, ...] = ()

    def __post_init__(self):
        vocab = self._vocab
        kinds = {
            step["type"]: step for step in _iter_steps(self._config.get("decoder"))
        }
        if "ByteLevel" not in kinds and not {"Metaspace", "Replace"} & kinds.keys():
            raise ConfigError(
                f"{TOKENIZER_JSON} decodes by {', '.join(kinds) or 'nothing'}: lmx knows those of"
                " bytes and of SentencePiece, which lose nothing."
            )
        meant = _letters_to_bytes if "ByteLevel" in kinds else _piece_to_bytes
        pieces = {token: meant(text) for text, token in vocab.items()}
        for added in self._config.get("added_tokens", ()):
            special = added.get("special", False)
            pieces[added["id"]] = b"" if special else added["content"].encode()
        count = max(pieces) + 1
        object.__setattr__(
            self, "pieces", tuple(pieces.get(token, b"") for token in range(count))
        )
        space = kinds.get("Metaspace", {})
        first = space.get("prepend_scheme", "always") != "never" if space else False
        strip = kinds.get("Strip", {}).get("start") == 1
        object.__setattr__(self, "strips", first or strip)

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return parse_json(self.files, TOKENIZER_JSON)

    @functools.cached_property
    def _vocab(self) -> dict[str, int]:
        vocab = (self._config.get("model") or {}).get("vocab")
        if isinstance(vocab, dict) and vocab:
            return vocab
        if isinstance(vocab, list) and vocab:
            return {text: token for token, (text, *_) in enumerate(vocab)}
        raise ConfigError(
            f"{TOKENIZER_JSON} has no model with a vocabulary, so that it is no tokenizer of"
            " Hugging Face: take the file from where the model was published."
        )

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                f"the library tokenizers is needed to encode with a {TOKENIZER_JSON}:"
                " pip install 'lmx[hf]'"
            ) from None
        try:
            tokenizer = Tokenizer.from_str(self.files[TOKENIZER_JSON].decode())
        except Exception as error:  # the library has no kind of its own
            raise ConfigError(
                f"{TOKENIZER_JSON} is refused by its library: {error}"
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        encode = self._tokenizer.encode_batch_fast  # in half the time, without places
        [found] = encode([text], add_special_tokens=False)
        return np.fromiter(found.ids, np.int32, len(found.ids))

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        for step in _iter_steps(self._config.get("post_processor")):
            if step["type"] == "TemplateProcessing":
                return tuple(_iter_prefix_tokens(step))
        return ()

    def token_to_id(self, text: str) -> int | None:
        added = {
            one["content"]: one["id"] for one in self._config.get("added_tokens", ())
        }
        return added.get(text, self._vocab.get(text))


def _iter_steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline that may be one, none or a sequence."""
    if step is None:
        return
    inner = step.get("decoders") or step.get("processors")
    if inner is None:
        yield step
    for one in inner or ():
        yield from _iter_steps(one)


def _iter_prefix_tokens(template: dict[str, Any]) -> Iterator[int]:
    """The tokens that a template puts before a single text."""
    for item in template["single"]:
        if "Sequence" in item:
            return
        yield from template["special_tokens"][item["SpecialToken"]["id"]]["ids"]


def _piece_to_bytes(text: str) -> bytes:
    """The bytes of a piece as SentencePiece writes it."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE_SYMBOL, " ").encode()


def _letters_to_bytes(text: str) -> bytes:
    """The bytes of a piece in GPT-2's alphabet, where each is one printable letter."""
    if all(letter in BYTE_OF_LETTER for letter in text):
        return bytes(BYTE_OF_LETTER[letter] for letter in text)
    return text.encode()
