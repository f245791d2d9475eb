"""What tensors come to in a few letters, however they are split over devices."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt64

Checksums = UInt64[np.ndarray, "2"]  # of one tensor, or of a part of it: parts add up
BLOCK_WORDS = (
    1 << 13
)  # words: its weights and a copy of its words stay in a core's cache
MAX_WORDS = 1 << 16  # words whose weights are looked up one by one


def compute_digests(state: PyTree) -> dict[str, str]:
    """One digest of 128 bits for each array, by its path, as 32 hexadecimal digits.

    A function of name, dtype, shape and elements alone: neither the mesh nor how many
    processes there are changes it. All of the state must be at hand in this process;
    where it is not, add up the `sums` of all. Finds accidents, not malice: another
    state of the same digest is easily made, and hardly ever comes about.
    """
    named = flatten_by_path(state)
    return {
        name: format_digest(name, leaf, compute_checksums(leaf, all_replicas=True))
        for name, leaf in named.items()
    }


def combine_digests(digests: Mapping[str, str]) -> str:
    """One digest of all of them, whatever their order: 32 hexadecimal digits."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def flatten_by_path(tree: PyTree) -> dict[str, Any]:
    """Every leaf by its path, as in `params.stack.cycles.0.blocks.0.mlp.up.w.value`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def format_digest(name: str, like: Any, sums: Checksums) -> str:
    """The digest of a whole tensor with the dtype and shape of `like`."""
    head = f"{name} {like.dtype} {tuple(like.shape)} ".encode()
    content = head + sums.astype("<u8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def compute_checksums(leaf: Any, *, all_replicas: bool = False) -> Checksums:
    """Two sums over the words of an array that this process has, modulo 2**64.

    Each word of at most 32 bits is weighted by its place in the whole array, in which
    each element is counted once: by the process that has its first replica, or if it
    is `every` element that is asked for, wherever a replica is at hand.
    """
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        parts = _iter_parts(leaf, all_replicas=all_replicas)
    else:
        parts = iter([((slice(None),) * np.ndim(leaf), np.asarray(leaf))])
    total = np.zeros(2, np.uint64)
    for index, part in parts:
        total += checksum_part(part, index, np.shape(leaf))
    return total


def _iter_parts(
    leaf: jax.Array, *, all_replicas: bool
) -> Iterator[tuple[Any, np.ndarray]]:
    """The pieces of an array that count here, and where they are in it."""
    seen = set()
    for shard in leaf.addressable_shards:
        place = str(shard.index)
        if place not in seen and (all_replicas or shard.replica_id == 0):
            seen.add(place)
            yield shard.index, np.asarray(shard.data)


def checksum_part(
    part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]
) -> Checksums:
    """The sums of the part of an array of that shape which stands at that index."""
    if not part.size:
        return np.zeros(2, np.uint64)
    count, kind = max(1, part.itemsize // 4), f"<u{min(4, part.itemsize)}"
    starts, run = _find_runs(index, shape)
    words = np.ascontiguousarray(part).reshape(len(starts), run).view(kind)
    if len(starts) == 1:
        return _checksum_run(words[0], int(starts[0]) * count)
    return _checksum_rows(words, starts * count)


def _find_runs(
    index: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """Where runs of neighbouring elements begin in the whole, and their length."""
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    starts, run, stride = np.zeros(1, np.int64), 1, 1
    whole = True  # so far, from the right: then a run goes on into the next row
    for (begin, end), size in reversed(list(zip(bounds, shape, strict=True))):
        if whole:
            starts, run = starts + begin * stride, run * (end - begin)
        else:
            places = np.arange(begin, end) * stride
            starts = (places[:, None] + starts).reshape(-1)
        whole = whole and (begin, end) == (0, size)
        stride *= size
    return starts, run


def _checksum_run(words: np.ndarray, start: int) -> Checksums:
    """The sums of neighbouring words, of which the first is number `start`."""
    total = np.zeros(2, np.uint64)
    first, end = start // BLOCK_WORDS, start + len(words)
    outer = _make_weights(first, math.ceil(end / BLOCK_WORDS), 1, 2)
    for block in range(first, first + outer.shape[1]):
        begin, stop = (
            max(start, block * BLOCK_WORDS),
            min(end, (block + 1) * BLOCK_WORDS),
        )
        few = words[begin - start : stop - start].astype(np.uint64)
        inner = INNER_WEIGHTS[begin - block * BLOCK_WORDS : stop - block * BLOCK_WORDS]
        total += outer[:, block - first] * np.einsum("i,i->", few, inner)
    return total


def _checksum_rows(words: np.ndarray, starts: np.ndarray) -> Checksums:
    """The sums of rows of words, of which each begins at a number of its own."""
    total = np.zeros(2, np.uint64)
    first, last = int(starts[0]), int(starts[-1]) + words.shape[1] - 1
    outer = _make_weights(first // BLOCK_WORDS, last // BLOCK_WORDS + 1, 1, 2)
    rows = max(1, MAX_WORDS // words.shape[1])
    for row in range(0, len(words), rows):
        begin = starts[row : row + rows, None]
        for column in range(0, words.shape[1], MAX_WORDS):
            few = words[row : row + rows, column : column + MAX_WORDS].astype(np.uint64)
            place = begin + np.arange(column, column + few.shape[1])
            few *= INNER_WEIGHTS.take(place % BLOCK_WORDS)
            block = place // BLOCK_WORDS - first // BLOCK_WORDS
            for lane in range(2):
                total[lane : lane + 1] += np.einsum(
                    "ij,ij->", few, outer[lane].take(block)
                )
    return total


def _make_weights(first: int, last: int, *lanes: int) -> np.ndarray:
    """Odd numbers of 64 bits without a pattern, those of [first, last) in each lane.

    Each word has the product of the weights of its place within its block, in lane 0,
    and of its block, in lane 1 for one sum and lane 2 for the other. They are odd so
    that no difference in a word is multiplied away.
    """
    numbers = np.arange(first, last, dtype=np.uint64)
    each = np.asarray(lanes, np.uint64)[:, None] << np.uint64(60)
    return _splitmix64(numbers ^ each) | np.uint64(1)


def _splitmix64(number: np.ndarray) -> np.ndarray:
    """The numbers, as if drawn by chance.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    figure 16.
    """
    number = (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


INNER_WEIGHTS = _make_weights(0, BLOCK_WORDS, 0)[0]
