"""Statistics of a tokenizer on held-out text."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.tokenizer.base import Tokenizer

LONGEST_COUNT = 10  # tokens


class TokenizerStats(NamedTuple):
    """Statistics of a tokenizer on held-out text, without BOS and EOS.

    Attributes:
        bytes: of UTF-8.
        coverage: fraction of bytes in tokens of whole characters; the other tokens have
            a part of a character.
        tokens_used: number of different tokens in the text.
        longest: the tokens with the most characters.
    """

    vocab: int
    documents: int
    bytes: int
    tokens: int
    bytes_per_token: float
    coverage: float
    tokens_used: int
    longest: tuple[str, ...]


def compute_stats(tokenizer: Tokenizer, held_out: Iterable[Document]) -> TokenizerStats:
    """Encodes every document."""
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
    return TokenizerStats(
        vocab=tokenizer.vocab,
        documents=documents,
        bytes=size,
        tokens=total,
        bytes_per_token=size / total,
        coverage=float(byte_counts[is_complete].sum() / byte_counts.sum()),
        tokens_used=int((counts > 0).sum()),
        longest=tuple(longest[:LONGEST_COUNT]),
    )


def _decode_complete(data: bytes) -> str:
    """The characters of a token; empty if it has a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""
