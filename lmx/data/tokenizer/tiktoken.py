"""Byte pairs by rank, as tiktoken reads them: a piece in base64 and its token."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import BYTES
from lmx.data.tokenizer.bpe import Merge, Pair
from lmx.data.tokenizer.byte_bpe import BPETokenizer
from lmx.data.tokenizer.pretokenize import PretokenizerName

TIKTOKEN_FILE = "tokenizer.tiktoken"


def load_tiktoken(
    file: bytes,
    pretokenizer: PretokenizerName,
    special_tokens: Mapping[str, int],
    **ids: Any,
) -> BPETokenizer:
    """A tokenizer of ranks: of two neighbours that are a piece, the least is merged.

    The file says neither how words are cut nor which tokens are special: both are told.
    """
    ranks = parse_ranks(file)
    tokens = {token: piece for piece, token in ranks.items()}
    for name, token in special_tokens.items():
        if token in tokens or token < 0:
            raise ConfigError(
                f"the special token {name!r} is given the number {token}, which is"
                f" {'a piece already' if token in tokens else 'none'}: the pieces of"
                f" the file go up to {max(tokens)}."
            )
    size = max([*tokens, *special_tokens.values()]) + 1
    return RankCodec(
        files={TIKTOKEN_FILE: file},
        pretokenizer=pretokenizer,
        vocab_bytes=tuple(tokens.get(n, b"") for n in range(size)),
        merges=derive_merges(ranks),
        word_tokens=ranks,
        special_tokens=special_tokens,
        **ids,
    )


class RankCodec(BPETokenizer):
    """Byte pairs from a file of ranks."""

    @property
    def ids(self) -> Mapping[str, Any]:
        return {**super().ids, "specials": dict(self.special_tokens)}

    @property
    def hf_files(self) -> Mapping[str, bytes]:
        return {}  # transformers reads no such file


def parse_ranks(file: bytes) -> dict[bytes, int]:
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


def derive_merges(ranks: Mapping[bytes, int]) -> dict[Pair, Merge]:
    """Every way to make a piece of two others, in the order of the pieces' ranks."""
    return {
        (ranks[left], ranks[right]): Merge(rank, rank)
        for piece, rank in ranks.items()
        for at in range(1, len(piece))
        if (left := piece[:at]) in ranks and (right := piece[at:]) in ranks
    }
