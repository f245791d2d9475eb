"""Reads and writes tokenizer.json of Hugging Face. Only encoding needs `tokenizers`."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from lmx.config.registry import ConfigError, require
from lmx.data.optional import import_optional
from lmx.data.tokenizer.base import (
    FileTokenizer,
    encode_utf8,
    list_vocab,
    parse_json,
)
from lmx.data.tokenizer.sentencepiece import SPACE_SYMBOL

TOKENIZER_JSON = "tokenizer.json"
# GPT-2's alphabet: printable bytes are themselves, the others are U+0100 and on.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
ALPHABET = (*PRINTABLE, *sorted({*range(256)} - {*PRINTABLE}))
BYTE_OF_LETTER = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(ALPHABET[len(PRINTABLE) :])
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HFTokenizer(FileTokenizer):
    """A tokenizer.json.

    Attributes:
        split_special_tokens: whether special tokens spelled in text are encoded as
            other words. By default they are encoded as such.
    """

    split_special_tokens: bool = False

    @functools.cached_property
    def vocab_bytes(self) -> tuple[bytes, ...]:
        vocab, kinds = self._vocab, self._decoders
        require(
            "ByteLevel" in kinds or {"Metaspace", "Replace"} & kinds.keys(),
            f"{TOKENIZER_JSON} has the decoder {', '.join(kinds) or None}: lmx"
            " supports those of byte-level BPE and of SentencePiece, which are"
            " lossless.",
        )
        decode = _letters_to_bytes if "ByteLevel" in kinds else _piece_to_bytes
        pairs = [(token, decode(text)) for text, token in vocab.items()]
        for added in self._config.get("added_tokens", ()):
            is_special = added.get("special", False)
            data = b"" if is_special else added["content"].encode()
            pairs.append((added["id"], data))
        return list_vocab(pairs)

    @functools.cached_property
    def strip_leading_space(self) -> bool:
        metaspace, strip = (self._decoders.get(kind) for kind in ("Metaspace", "Strip"))
        if metaspace and metaspace.get("prepend_scheme", "always") != "never":
            return True
        return bool(strip) and strip.get("start") == 1

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return parse_json(self.files, TOKENIZER_JSON)

    @functools.cached_property
    def _decoders(self) -> dict[str, dict[str, Any]]:
        return {step["type"]: step for step in _list_steps(self._config.get("decoder"))}

    @functools.cached_property
    def _vocab(self) -> dict[str, int]:
        vocab = (self._config.get("model") or {}).get("vocab")
        if isinstance(vocab, dict) and vocab:
            return vocab
        if isinstance(vocab, list) and vocab:
            return {text: token for token, (text, *_) in enumerate(vocab)}
        raise ConfigError(
            f"{TOKENIZER_JSON} has no model with a vocabulary, so it is not a tokenizer"
            " of Hugging Face: download it again."
        )

    @functools.cached_property
    def _tokenizer(self) -> Any:
        content = self.files[TOKENIZER_JSON].decode()
        if self.split_special_tokens:
            added = {token["content"] for token in self._config["added_tokens"]}
            vocab = {k: v for k, v in self._vocab.items() if k not in added}
            model = {**self._config["model"], "vocab": vocab}
            content = json.dumps({**self._config, "added_tokens": [], "model": model})
        tokenizer = load_json(content, f"to encode with a {TOKENIZER_JSON}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        encode_utf8(text)
        encode = self._tokenizer.encode_batch_fast  # no offsets: half the time
        [encoding] = encode([text], add_special_tokens=False)
        return np.fromiter(encoding.ids, np.int32, len(encoding.ids))

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        for step in _list_steps(self._config.get("post_processor")):
            if step["type"] == "TemplateProcessing":
                return tuple(_iter_prefix_tokens(step))
        return ()

    def token_to_id(self, text: str) -> int | None:
        added = self._config.get("added_tokens", ())
        ids = {token["content"]: token["id"] for token in added}
        return ids.get(text, self._vocab.get(text))


def load_json(content: str, purpose: str) -> Any:
    """The tokenizer of the library `tokenizers` that a tokenizer.json defines."""
    library = import_optional("tokenizers", "hf", purpose)
    try:
        return library.Tokenizer.from_str(content)
    except Exception as error:  # the library raises no class of its own
        raise ConfigError(
            f"the library tokenizers cannot read {TOKENIZER_JSON}: {error}"
        ) from None


def format_byte_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    pattern: str,
    special_tokens: Mapping[str, int],
    *,
    ignore_merges: bool = False,
) -> bytes:
    """A tokenizer.json of byte-level BPE.

    Texts are in GPT-2's alphabet, and `pattern` matches the words that merges do not
    cross. With `ignore_merges`, a word that is a token is never split.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [split, {**byte_level, "use_regex": False}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    content = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": [
            {"id": token, "content": name, "special": True} | flags
            for name, token in sorted(special_tokens.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**byte_level, "use_regex": True},
        "model": model | ({"ignore_merges": True} if ignore_merges else {}),
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _list_steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pipeline: none, one, or those of a sequence."""
    if step is None:
        return []
    children = step.get("decoders") or step.get("processors")
    if children is None:
        return [step]
    return list(itertools.chain.from_iterable(map(_list_steps, children)))


def _iter_prefix_tokens(template: dict[str, Any]) -> Iterator[int]:
    """The tokens that a template puts before a single text."""
    for item in template["single"]:
        if "Sequence" in item:
            return
        yield from template["special_tokens"][item["SpecialToken"]["id"]]["ids"]


def _piece_to_bytes(text: str) -> bytes:
    """The bytes of a token in SentencePiece's notation."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE_SYMBOL, " ").encode()


def _letters_to_bytes(text: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet."""
    if all(letter in BYTE_OF_LETTER for letter in text):
        return bytes(BYTE_OF_LETTER[letter] for letter in text)
    return text.encode()
