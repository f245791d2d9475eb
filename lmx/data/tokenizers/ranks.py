"""Byte pairs by rank, as tiktoken reads them: a piece in base64 and its token."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from lmx.config.names import ConfigError
from lmx.data.bpe import Merge, Pair
from lmx.data.tokenizers.codec import BYTES
from lmx.data.tokenizers.pairs import PairCodec
from lmx.data.tokenizers.words import Words

RANKS = "tokenizer.tiktoken"


def open_ranks(
    file: bytes, words: Words, specials: Mapping[str, int], **ids: Any
) -> PairCodec:
    """A tokenizer of ranks: of two neighbours that are a piece, the least is merged.

    The file says neither how words are cut nor which tokens are special: both are told.
    """
    ranks = read_ranks(file)
    tokens = {token: piece for piece, token in ranks.items()}
    for name, token in specials.items():
        if token in tokens or token < 0:
            raise ConfigError(
                f"the special token {name!r} is given the number {token}, which is"
                f" {'a piece already' if token in tokens else 'none'}: the pieces of"
                f" the file go up to {max(tokens)}."
            )
    size = max([*tokens, *specials.values()]) + 1
    return RankCodec(
        files={RANKS: file},
        words=words,
        pieces=tuple(tokens.get(n, b"") for n in range(size)),
        merges=rank_merges(ranks),
        whole=ranks,
        specials=specials,
        **ids,
    )


class RankCodec(PairCodec):
    """Byte pairs from a file of ranks."""

    @property
    def ids(self) -> Mapping[str, Any]:
        return {**super().ids, "specials": dict(self.specials)}

    @property
    def carried(self) -> Mapping[str, bytes]:
        return {}  # transformers reads no such file


def read_ranks(file: bytes) -> dict[bytes, int]:
    """The pieces and their tokens. Refuses, by its line, what is no such file."""
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(file.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            piece, token = base64.b64decode(text, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ConfigError(
                f"line {number}: {line[:40]!r} is not a piece in base64, a space and a"
                " number: the file is damaged or of another kind."
            ) from None
        if not piece or token < 0 or piece in ranks or token in seen:
            raise ConfigError(
                f"line {number}: {line[:40]!r} is empty, or a line before has its piece"
                " or its number: the file is damaged."
            )
        ranks[piece] = token
        seen.add(token)
    if missing := [byte[0] for byte in BYTES if byte not in ranks]:
        raise ConfigError(
            f"{len(missing)} of the 256 bytes have no token, 0x{missing[0]:02x} the"
            " first: the file is cut short or of another kind."
        )
    return ranks


def rank_merges(ranks: Mapping[bytes, int]) -> dict[Pair, Merge]:
    """Every way to make a piece of two others, in the order of the pieces' ranks."""
    return {
        (ranks[left], ranks[right]): Merge(rank, rank)
        for piece, rank in ranks.items()
        for at in range(1, len(piece))
        if (left := piece[:at]) in ranks and (right := piece[at:]) in ranks
    }
