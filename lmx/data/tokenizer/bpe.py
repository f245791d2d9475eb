"""Byte-pair encoding, to be read: how merges are learned, and how a word is encoded.

Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2. What is learned and what
is encoded is what the library `tokenizers` learns and encodes, merge for merge.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
ALPHABET = (
    *PRINTABLE,
    *sorted({*range(256)} - {*PRINTABLE}),
)  # bytes as GPT-2 numbers them
Pair = tuple[int, int]
NONE = -1  # the neighbour of the first token, and of the last


class Merge(NamedTuple):
    """What becomes of a pair: in which turn, and which token it is then."""

    rank: int
    token: int


class BPEModel(NamedTuple):
    """A vocabulary of pieces, and the merges in their order.

    Two merges may make one piece, as `a bc` and `ab c` do: that is one token.
    """

    vocab: list[bytes]
    merges: list[tuple[Pair, int]]

    @property
    def merge_ranks(self) -> dict[Pair, Merge]:
        """The merges by pair; of two of one pair the later counts."""
        return {pair: Merge(n, made) for n, (pair, made) in enumerate(self.merges)}


def train_bpe(words: Mapping[bytes, int], size: int) -> BPEModel:
    """Merges of the most frequent pairs, until there are `size` pieces or no pair.

    `words` says how often each word occurs; no merge reaches beyond a word. Of pairs as
    frequent the one of the smallest tokens is merged.
    """
    pieces = [bytes([byte]) for byte in ALPHABET]
    token_of = {piece: token for token, piece in enumerate(pieces)}
    texts = [[token_of[bytes([byte])] for byte in word] for word in words]
    times = list(words.values())
    count, places = Counter[Pair](), defaultdict[Pair, set[int]](set)
    for place, (text, often) in enumerate(zip(texts, times, strict=True)):
        for pair in pairwise(text):
            count[pair] += often
            places[pair].add(place)
    queue = [(-count[pair], pair, where) for pair, where in places.items()]
    heapq.heapify(queue)
    merges = []
    while len(pieces) < size and queue:
        claimed, pair, where = heapq.heappop(queue)
        if claimed != -count[pair]:  # other merges took some away since it was queued
            heapq.heappush(queue, (-count[pair], pair, where))
            continue
        if not claimed:
            break
        piece = pieces[pair[0]] + pieces[pair[1]]
        token = token_of.setdefault(piece, len(pieces))
        pieces += [piece] * (token == len(pieces))
        merges.append((pair, token))
        places.clear()
        for place in where:
            texts[place], changes = merge_pair(texts[place], pair, token)
            for changed, by in changes:
                count[changed] += by * times[place]
                if by > 0:
                    places[changed].add(place)
        for changed, where in places.items():
            heapq.heappush(queue, (-count[changed], changed, where))
    return BPEModel(pieces, merges)


def merge_pair(
    text: Sequence[int], pair: Pair, token: int
) -> tuple[list[int], list[tuple[Pair, int]]]:
    """The text with `token` for each `pair`, from the left, and what pairs that costs.

    Changes are +1 and -1 for the pairs beside each merge, not for the merged one.
    """
    left, right = pair
    made: list[int] = []
    changes: list[tuple[Pair, int]] = []
    at = 0
    while at < len(text):
        if text[at] != left or tuple(text[at : at + 2]) != pair:
            made.append(text[at])
            at += 1
            continue
        if made:
            changes += [((made[-1], left), -1), ((made[-1], token), 1)]
        if at + 2 < len(text):
            changes += [((right, text[at + 2]), -1), ((token, text[at + 2]), 1)]
        made.append(token)
        at += 2
    return made, changes


def encode_word(word: Iterable[int], merge_ranks: Mapping[Pair, Merge]) -> list[int]:
    """The tokens of a word of tokens: the earliest merge first, the leftmost of equals.

    For n tokens it takes n log n steps, however long the word is.
    """
    tokens = list(word)
    before = list(range(-1, len(tokens) - 1))
    after = [*range(1, len(tokens)), NONE]
    turn_at = [merge_ranks.get(pair) for pair in pairwise(tokens)]
    queue = [(turn.rank, at, turn.token) for at, turn in enumerate(turn_at) if turn]
    heapq.heapify(queue)
    while queue:
        _, at, token = heapq.heappop(queue)
        gone = after[at]
        if tokens[at] == NONE or gone == NONE:
            continue
        turn = merge_ranks.get((tokens[at], tokens[gone]))
        if turn is None or turn.token != token:  # a neighbour was merged since
            continue
        tokens[at], tokens[gone] = token, NONE
        after[at] = after[gone]
        if after[at] != NONE:
            before[after[at]] = at
        for place in (before[at], at):
            if place != NONE and after[place] != NONE:
                if turn := merge_ranks.get((tokens[place], tokens[after[place]])):
                    heapq.heappush(queue, (turn.rank, place, turn.token))
    return [token for token in tokens if token != NONE]
