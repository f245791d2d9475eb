"""Byte-pair encoding: training of merges, and encoding of a word.

Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2. Merges and tokens equal
those of the library `tokenizers`.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
# The bytes in GPT-2's order.
ALPHABET = (*PRINTABLE, *sorted({*range(256)} - {*PRINTABLE}))
Pair = tuple[int, int]
NONE = -1  # no neighbor, and no token


class Merge(NamedTuple):
    """The rank of a pair's merge, and the token that replaces the pair."""

    rank: int
    token: int


class BPEModel(NamedTuple):
    """The bytes of each token, and the merges in order.

    Two merges can give the same token, such as `a bc` and `ab c`.
    """

    vocab: list[bytes]
    merges: list[tuple[Pair, int]]

    @property
    def merge_ranks(self) -> dict[Pair, Merge]:
        """The merges by pair. Of two merges of one pair the later one counts."""
        return {pair: Merge(n, token) for n, (pair, token) in enumerate(self.merges)}


def train_bpe(words: Mapping[bytes, int], size: int) -> BPEModel:
    """Merges the most frequent pairs until there are `size` tokens or no pair is left.

    `words` has the count of each word; merges do not cross words. Of equally frequent
    pairs the one with the smallest tokens is merged.
    """
    vocab = [bytes([byte]) for byte in ALPHABET]
    token_of = {data: token for token, data in enumerate(vocab)}
    texts = [[token_of[bytes([byte])] for byte in word] for word in words]
    word_counts = list(words.values())
    counts, places = Counter[Pair](), defaultdict[Pair, set[int]](set)
    for index, (text, count) in enumerate(zip(texts, word_counts, strict=True)):
        for pair in pairwise(text):
            counts[pair] += count
            places[pair].add(index)
    queue = [(-counts[pair], pair, indices) for pair, indices in places.items()]
    heapq.heapify(queue)
    merges = []
    while len(vocab) < size and queue:
        negative_count, pair, indices = heapq.heappop(queue)
        if negative_count != -counts[pair]:  # other merges have reduced the count
            heapq.heappush(queue, (-counts[pair], pair, indices))
            continue
        if not negative_count:
            break
        data = vocab[pair[0]] + vocab[pair[1]]
        token = token_of.setdefault(data, len(vocab))
        vocab += [data] * (token == len(vocab))
        merges.append((pair, token))
        places.clear()
        for index in indices:
            texts[index], changes = merge_pair(texts[index], pair, token)
            for changed, change in changes:
                counts[changed] += change * word_counts[index]
                if change > 0:
                    places[changed].add(index)
        for changed, indices in places.items():
            heapq.heappush(queue, (-counts[changed], changed, indices))
    return BPEModel(vocab, merges)


def merge_pair(
    text: Sequence[int], pair: Pair, token: int
) -> tuple[list[int], list[tuple[Pair, int]]]:
    """The text with `token` for each `pair`, from the left, and changes of pair counts.

    Changes are +1 and -1 for the neighbors of each merge, not for the merged pair.
    """
    left, right = pair
    merged: list[int] = []
    changes: list[tuple[Pair, int]] = []
    index = 0
    while index < len(text):
        if text[index] != left or tuple(text[index : index + 2]) != pair:
            merged.append(text[index])
            index += 1
            continue
        if merged:
            changes += [((merged[-1], left), -1), ((merged[-1], token), 1)]
        if index + 2 < len(text):
            following = text[index + 2]
            changes += [((right, following), -1), ((token, following), 1)]
        merged.append(token)
        index += 2
    return merged, changes


def encode_word(word: Iterable[int], merge_ranks: Mapping[Pair, Merge]) -> list[int]:
    """Applies merges to the tokens of a word: least rank first, then leftmost.

    Takes O(n log n) time for n tokens.
    """
    tokens = list(word)
    previous = list(range(-1, len(tokens) - 1))
    following = [*range(1, len(tokens)), NONE]
    pair_merges = [merge_ranks.get(pair) for pair in pairwise(tokens)]
    queue = [(m.rank, index, m.token) for index, m in enumerate(pair_merges) if m]
    heapq.heapify(queue)
    while queue:
        _, index, token = heapq.heappop(queue)
        right = following[index]
        if tokens[index] == NONE or right == NONE:
            continue
        merge = merge_ranks.get((tokens[index], tokens[right]))
        if merge is None or merge.token != token:  # a neighbor has been merged
            continue
        tokens[index], tokens[right] = token, NONE
        following[index] = following[right]
        if following[index] != NONE:
            previous[following[index]] = index
        for left in (previous[index], index):
            if left != NONE and following[left] != NONE:
                if merge := merge_ranks.get((tokens[left], tokens[following[left]])):
                    heapq.heappush(queue, (merge.rank, left, merge.token))
    return [token for token in tokens if token != NONE]
