"""Digests of tensors that do not depend on how they are sharded."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

Checksums = list[int]  # two per tensor or part; those of parts add up mod 2**64
Index = tuple[slice, ...]
Parts = list[tuple[Index, np.ndarray]]  # of a tensor, each with its index

BLOCK_WORDS = 1 << 13  # a block and its weights fit into the cache of a core
MAX_WORDS = 1 << 16  # words of scattered rows to weight at a time


def flatten_by_path(tree: PyTree) -> dict[str, Any]:
    """Every leaf by its path, as in `params.stack.cycles.0.blocks.0.mlp.up.w.value`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def format_digest(name: str, tensor: Any, checksums: Checksums) -> str:
    """The digest of a tensor: 128 bits, as 32 hexadecimal digits.

    A function of name, dtype, shape and elements alone, not of mesh or processes. It
    detects accidents, not attacks: another tensor with the same digest is easy to
    construct, and very unlikely to occur.
    """
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
    content = head + np.array(checksums, "<u8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def combine_digests(digests: Mapping[str, str]) -> str:
    """One digest of all of them, in any order: 32 hexadecimal digits."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def add_checksums(checksums: Iterable[Checksums]) -> Checksums:
    """The checksums of parts together."""
    return [sum(values) % 2**64 for values in zip((0, 0), *checksums, strict=True)]


def get_local_parts(arrays: Mapping[str, jax.Array]) -> dict[str, Parts]:
    """The first replicas of shards in this process, in host memory."""
    shards = {
        name: [shard for shard in array.addressable_shards if shard.replica_id == 0]
        for name, array in arrays.items()
    }
    for shard in itertools.chain(*shards.values()):
        shard.data.copy_to_host_async()
    return {
        name: [(shard.index, np.asarray(shard.data)) for shard in found]
        for name, found in shards.items()
    }


def checksum_parts(
    parts: Iterable[tuple[Index, np.ndarray]], shape: tuple[int, ...]
) -> Checksums:
    """The checksums of parts of a tensor of that shape, together."""
    return add_checksums(checksum_part(part, index, shape) for index, part in parts)


def checksum_part(part: np.ndarray, index: Index, shape: tuple[int, ...]) -> Checksums:
    """The checksums of the part at `index` of a tensor of that shape.

    Two sums of words of at most 32 bits, modulo 2**64. The weight of a word is the
    product of two pseudorandom numbers: one of its position in its block of
    `BLOCK_WORDS` words of the tensor (stream 0), one of the block (stream 1 or 2).
    """
    if not part.size:
        return [0, 0]
    count, kind = max(1, part.itemsize // 4), f"<u{min(4, part.itemsize)}"
    starts, run = _find_runs(index, shape)
    words = np.ascontiguousarray(part).reshape(len(starts), run).view(kind)
    if len(starts) == 1:
        return _checksum_run(words[0], int(starts[0]) * count).tolist()
    return _checksum_rows(words, starts * count).tolist()


def _find_runs(index: Index, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Where runs of adjacent elements of a part start in the tensor; their length."""
    starts, run, stride = np.zeros(1, np.int64), 1, 1
    complete = True  # all dimensions so far: then a run continues in the next row
    for dim, size in reversed([*zip(index, shape, strict=True)]):
        start, stop, _ = dim.indices(size)
        if complete:
            starts, run = starts + start * stride, run * (stop - start)
        else:
            rows = np.arange(start, stop) * stride
            starts = (rows[:, None] + starts).reshape(-1)
        complete = complete and (start, stop) == (0, size)
        stride *= size
    return starts, run


def _checksum_run(words: np.ndarray, start: int) -> np.ndarray:
    """The checksums of adjacent words, the first of which is number `start`."""
    total, end = np.zeros(2, np.uint64), start + len(words)
    first = start // BLOCK_WORDS
    outer = _make_weights(first, math.ceil(end / BLOCK_WORDS), 1, 2)
    for block, weights in enumerate(outer.T, first):
        origin = block * BLOCK_WORDS
        begin, stop = max(start, origin), min(end, origin + BLOCK_WORDS)
        few = words[begin - start : stop - start].astype(np.uint64)
        inner = INNER_WEIGHTS[begin - origin : stop - origin]
        total += weights * np.einsum("i,i->", few, inner)
    return total


def _checksum_rows(words: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The checksums of rows of adjacent words, each with its own start."""
    total = np.zeros(2, np.uint64)
    first = int(starts[0]) // BLOCK_WORDS
    last = (int(starts[-1]) + words.shape[1] - 1) // BLOCK_WORDS
    outer = _make_weights(first, last + 1, 1, 2)
    rows = max(1, MAX_WORDS // words.shape[1])
    for row in range(0, len(words), rows):
        for column in range(0, words.shape[1], MAX_WORDS):
            few = words[row : row + rows, column : column + MAX_WORDS].astype(np.uint64)
            columns = np.arange(column, column + few.shape[1])
            position = starts[row : row + rows, None] + columns
            few *= INNER_WEIGHTS.take(position % BLOCK_WORDS)
            block = position // BLOCK_WORDS - first
            total += [np.einsum("ij,ij->", few, x.take(block)) for x in outer]
    return total


def _make_weights(first: int, last: int, *streams: int) -> np.ndarray:
    """Odd 64-bit numbers, so that no product is 0: [first, last) of each stream."""
    numbers = np.arange(first, last, dtype=np.uint64)
    offsets = np.asarray(streams, np.uint64)[:, None] << np.uint64(60)
    return _splitmix64(numbers ^ offsets) | np.uint64(1)


def _splitmix64(number: np.ndarray) -> np.ndarray:
    """Pseudorandom numbers: Steele, Lea and Flood 2014, OOPSLA, figure 16."""
    number = (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


INNER_WEIGHTS = _make_weights(0, BLOCK_WORDS, 0)[0]
