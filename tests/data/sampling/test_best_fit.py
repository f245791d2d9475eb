"""Tests of best-fit packing, against packing one document at a time."""

import logging

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.packing import load_or_pack, pack_best_fit, pack_documents


def pack_one_by_one(sizes, length) -> list[int]:
    """The capacity that is left in each row of best-fit decreasing."""
    capacities = []
    for size in sorted(sizes, reverse=True):
        fits = [capacity for capacity in capacities if capacity >= size]
        if fits:
            capacities.remove(min(fits))
        capacities.append((min(fits) if fits else length) - size)
    return sorted(capacities)


def find_starts(sizes) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 61])
@pytest.mark.parametrize("count", [1, 2, 30, 400])
def test_rows_are_as_full_as_when_documents_are_packed_one_by_one(count, length):
    random = np.random.default_rng(count * 100 + length)
    for largest in {1, length // 3 or 1, length}:
        sizes = random.integers(1, largest, count, endpoint=True)
        counts = np.bincount(sizes, minlength=length + 1).tolist()
        capacities, packed = [], []
        for rows, row in pack_best_fit(counts):
            capacity = length
            while row is not None:
                capacity -= row.size * row.count
                packed += [row.size] * row.count * rows
                row = row.previous
            capacities += [capacity] * rows
        assert sorted(packed) == sorted(sizes)
        assert sorted(capacities) == pack_one_by_one(sizes, length)


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_every_token_but_the_first_of_a_document_is_a_target_once(length):
    sizes = np.random.default_rng(length).integers(0, 40, 300)
    starts = find_starts(sizes)
    packed = pack_documents(starts, length)
    targets = [
        start + 1 + i
        for start, size in zip(packed.starts, packed.lengths, strict=True)
        for i in range(size)
    ]
    later_tokens = set(range(starts[-1])) - set(starts[:-1].tolist())
    assert sorted(targets) == sorted(later_tokens)
    row_lengths = np.add.reduceat(packed.lengths, packed.row_starts[:-1])
    assert row_lengths.max() <= length and row_lengths.min() >= 1
    assert packed.row_starts[-1] == len(packed.starts)


def test_a_document_that_fits_a_row_is_in_one_row():
    sizes = np.random.default_rng(0).integers(2, 33, 1000)
    starts = find_starts(sizes)
    packed = pack_documents(starts, 32)
    lengths = dict(zip(packed.starts.tolist(), packed.lengths.tolist(), strict=True))
    assert len(packed.starts) == 1000
    assert lengths == dict(zip(starts[:-1].tolist(), (sizes - 1).tolist(), strict=True))


def test_parts_of_a_long_document_repeat_one_token():
    packed = pack_documents(find_starts([24]), 10)
    segments = zip(packed.starts, packed.lengths, strict=True)
    assert list(segments) == [(0, 10), (10, 10), (20, 3)]


def test_packing_is_cached_per_documents_and_length(cache, monkeypatch):
    starts = find_starts([5, 9, 3])
    packed = load_or_pack(starts, {"a": "b"}, 8)
    monkeypatch.setattr("lmx.data.sampling.packing.pack_documents", refuse_to_pack)
    for cached, array in zip(load_or_pack(starts, {"a": "b"}, 8), packed, strict=True):
        assert cached.tolist() == array.tolist()
    for other in (({"a": "c"}, 8), ({"a": "b"}, 9)):
        with pytest.raises(AssertionError, match="packed again"):
            load_or_pack(starts, *other)


def refuse_to_pack(starts, length):
    raise AssertionError("packed again")


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_replaced(cache, place, damage, caplog):
    starts = find_starts(range(2, 30))
    packed = [array.tolist() for array in load_or_pack(starts, {}, 16)]
    [path] = (cache / "rows").iterdir()
    content = path.read_bytes()
    index = int(place * (len(content) - 1))
    flipped = bytes([content[index] ^ 1])
    path.write_bytes({
        "truncated": content[:index],
        "flipped": content[:index] + flipped + content[index + 1 :],
        "empty": b"",
    }[damage])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert [array.tolist() for array in load_or_pack(starts, {}, 16)] == packed
    assert "packing again" in caplog.text
    assert path.read_bytes() == content


def test_documents_of_one_token_are_refused():
    with pytest.raises(ConfigError, match="no document has two tokens"):
        pack_documents(find_starts([1, 1, 0]), 8)
