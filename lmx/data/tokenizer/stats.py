"""What a tokenizer makes of text that it has not seen."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Document
from lmx.data.tokenizer.base import Tokenizer

LONGEST_COUNT = 10  # pieces


class TokenizerStats(NamedTuple):
    """Numbers of a tokenizer on held-out text, begin and end left out.

    Attributes:
        bytes: of UTF-8.
        coverage: share of the bytes in pieces of whole characters; of the rest a piece
            has a part of a character.
        used: how many different tokens the text takes.
        longest: the pieces of most characters.
    """

    vocab: int
    documents: int
    bytes: int
    tokens: int
    bytes_per_token: float
    coverage: float
    tokens_used: int
    longest: tuple[str, ...]


def compute_stats(codec: Tokenizer, held_out: Iterable[Document]) -> TokenizerStats:
    """Encodes every document."""
    counts = np.zeros(codec.vocab, np.int64)
    documents = size = 0
    for document in held_out:
        tokens = codec.encode(document.text)
        counts += np.bincount(tokens, minlength=codec.vocab)
        documents += 1
        size += len(document.text.encode())
    if not (total := int(counts.sum())):
        raise ConfigError("no token stands for the held-out text: give more of it.")
    texts = [_decode_complete(piece) for piece in codec.vocab_bytes]
    whole = np.array([bool(text) for text in texts])
    spelled = counts * codec.token_bytes
    longest = sorted(filter(None, texts), key=lambda text: (-len(text), text))
    return TokenizerStats(
        vocab=codec.vocab,
        documents=documents,
        bytes=size,
        tokens=total,
        bytes_per_token=size / total,
        coverage=float(spelled[whole].sum() / spelled.sum()),
        tokens_used=int((counts > 0).sum()),
        longest=tuple(longest[:LONGEST_COUNT]),
    )


def _decode_complete(piece: bytes) -> str:
    """The characters of the piece; nothing if it has a part of one."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return ""
