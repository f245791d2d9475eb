"""A tokenizer.json of Hugging Face, read without its library but to encode."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from lmx.config.names import ConfigError
from lmx.data.bpe import ALPHABET, SHOWN
from lmx.data.tokenizers.codec import utf8
from lmx.data.tokenizers.file import FileCodec, content
from lmx.data.tokenizers.pieces import SPACE

FAST = "tokenizer.json"
# Bytes that Latin-1 prints stand for themselves, the rest for U+0100 and on.
LETTERS = {chr(byte): byte for byte in SHOWN} | {
    chr(0x100 + n): byte for n, byte in enumerate(ALPHABET[len(SHOWN) :])
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FastCodec(FileCodec):
    """A tokenizer.json. Only `encode` needs the library `tokenizers`."""

    pieces: tuple[bytes, ...] = ()

    def __post_init__(self):
        vocab = self._vocab
        kinds = {step["type"]: step for step in _steps(self._said.get("decoder"))}
        if "ByteLevel" not in kinds and not {"Metaspace", "Replace"} & kinds.keys():
            raise ConfigError(
                f"{FAST} decodes by {', '.join(kinds) or 'nothing'}: lmx knows those of"
                " bytes and of SentencePiece, which lose nothing."
            )
        meant = _by_bytes if "ByteLevel" in kinds else _by_pieces
        pieces = {token: meant(text) for text, token in vocab.items()}
        for added in self._said.get("added_tokens", ()):
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
    def _said(self) -> dict[str, Any]:
        return content(self.files, FAST)

    @functools.cached_property
    def _vocab(self) -> dict[str, int]:
        vocab = (self._said.get("model") or {}).get("vocab")
        if isinstance(vocab, dict) and vocab:
            return vocab
        if isinstance(vocab, list) and vocab:
            return {text: token for token, (text, *_) in enumerate(vocab)}
        raise ConfigError(
            f"{FAST} has no model with a vocabulary, so that it is no tokenizer of"
            " Hugging Face: take the file from where the model was published."
        )

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                f"the library tokenizers is needed to encode with a {FAST}:"
                " pip install 'lmx[hf]'"
            ) from None
        try:
            tokenizer = Tokenizer.from_str(self.files[FAST].decode())
        except Exception as error:  # the library has no kind of its own
            raise ConfigError(f"{FAST} is refused by its library: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        utf8(text)
        encode = self._tokenizer.encode_batch_fast  # in half the time, without places
        [found] = encode([text], add_special_tokens=False)
        return np.fromiter(found.ids, np.int32, len(found.ids))

    @property
    def prefix(self) -> tuple[int, ...]:
        for step in _steps(self._said.get("post_processor")):
            if step["type"] == "TemplateProcessing":
                return tuple(_before(step))
        return ()

    def token(self, text: str) -> int | None:
        added = {
            one["content"]: one["id"] for one in self._said.get("added_tokens", ())
        }
        return added.get(text, self._vocab.get(text))


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline that may be one, none or a sequence."""
    if step is None:
        return
    inner = step.get("decoders") or step.get("processors")
    if inner is None:
        yield step
    for one in inner or ():
        yield from _steps(one)


def _before(template: dict[str, Any]) -> Iterator[int]:
    """The tokens that a template puts before a single text."""
    for item in template["single"]:
        if "Sequence" in item:
            return
        yield from template["special_tokens"][item["SpecialToken"]["id"]]["ids"]


def _by_pieces(text: str) -> bytes:
    """The bytes of a piece as SentencePiece writes it."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _by_bytes(text: str) -> bytes:
    """The bytes of a piece in GPT-2's alphabet, where each is one printable letter."""
    if all(letter in LETTERS for letter in text):
        return bytes(LETTERS[letter] for letter in text)
    return text.encode()
