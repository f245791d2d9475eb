"""Parses tiktoken files: lines of a base64 byte string and its rank."""

import base64
import binascii
from collections.abc import Mapping

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import BYTES
from lmx.data.tokenizer.bpe import Merge, Pair

TIKTOKEN_FILE = "tokenizer.tiktoken"


def parse_ranks(file: bytes) -> dict[bytes, int]:
    """The byte strings and their tokens. Errors name the line."""
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(file.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            data, token = base64.b64decode(text, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ConfigError(
                f"line {number}: {line[:40]!r} must be a base64 string, a space and a"
                " number: the file is damaged or of another kind."
            ) from None
        if not data or token < 0 or data in ranks or token in seen:
            raise ConfigError(
                f"line {number}: {line[:40]!r} is empty, or repeats the string or the"
                " number of an earlier line: the file is damaged."
            )
        ranks[data] = token
        seen.add(token)
    if missing := [byte[0] for byte in BYTES if byte not in ranks]:
        raise ConfigError(
            f"{len(missing)} of the 256 bytes have no token, first 0x{missing[0]:02x}:"
            " the file is truncated or of another kind."
        )
    return ranks


def derive_merges(ranks: Mapping[bytes, int]) -> dict[Pair, Merge]:
    """Every pair of tokens that makes a token, with the rank of that token."""
    return {
        (ranks[left], ranks[right]): Merge(rank, rank)
        for data, rank in ranks.items()
        for split in range(1, len(data))
        if (left := data[:split]) in ranks and (right := data[split:]) in ranks
    }
