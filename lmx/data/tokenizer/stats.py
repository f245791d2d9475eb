"""Statistics of a tokenizer on held-out text."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.tokenizer.base import Tokenizer

LONGEST_COUNT = 10  # tokens


def compute_stats(tokenizer: Tokenizer, held_out: Iterable[Document]) -> dict[str, Any]:
    """Encodes every document, without BOS and EOS.

    `coverage` is the fraction of bytes in tokens of whole characters, `tokens_used` the
    number of different tokens in the text, `longest` the tokens with most characters.
    """
    counts = np.zeros(tokenizer.vocab, np.int64)
    documents = size = 0
    for document in held_out:
        tokens = tokenizer.encode(document.text)
        counts += np.bincount(tokens, minlength=tokenizer.vocab)
        documents += 1
        size += len(document.text.encode())
    if not (total := int(counts.sum())):
        raise ConfigError("the held-out text has no tokens: add text.")
    texts = [_decode_complete(data) for data in tokenizer.vocab_bytes]
    is_complete = np.array([bool(text) for text in texts])
    byte_counts = counts * tokenizer.token_bytes
    longest = sorted(filter(None, texts), key=lambda text: (-len(text), text))
    return {
        "vocab": tokenizer.vocab,
        "documents": documents,
        "bytes": size,
        "tokens": total,
        "bytes_per_token": size / total,
        "coverage": float(byte_counts[is_complete].sum() / byte_counts.sum()),
        "tokens_used": int((counts > 0).sum()),
        "longest": longest[:LONGEST_COUNT],
    }


def _decode_complete(data: bytes) -> str:
    """The characters of a token; empty if it has a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""
