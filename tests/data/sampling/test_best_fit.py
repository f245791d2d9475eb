"""What best-fit packing must keep, against documents packed one by one."""

import logging

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.sampling.best_fit import load_or_pack, pack_best_fit, pack_documents


def one_by_one(sizes, length) -> list[int]:
    """The room that is left in each row of best-fit decreasing."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fits = [room for room in rooms if room >= size]
        if fits:
            rooms.remove(min(fits))
        rooms.append((min(fits) if fits else length) - size)
    return sorted(rooms)


def starts_of(sizes) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 61])
@pytest.mark.parametrize("count", [1, 2, 30, 400])
def test_rows_are_as_full_as_if_documents_were_packed_one_by_one(count, length):
    random = np.random.default_rng(count * 100 + length)
    for top in {1, length // 3 or 1, length}:
        sizes = random.integers(1, top, count, endpoint=True)
        counts = np.bincount(sizes, minlength=length + 1).tolist()
        rooms, packed = [], []
        for rows, row in pack_best_fit(counts):
            room = length
            while row is not None:
                room -= row.size * row.count
                packed += [row.size] * row.count * rows
                row = row.previous
            rooms += [room] * rows
        assert sorted(packed) == sorted(sizes)
        assert sorted(rooms) == one_by_one(sizes, length)


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_every_token_but_a_documents_first_is_a_target_once(length):
    sizes = np.random.default_rng(length).integers(0, 40, 300)
    starts = starts_of(sizes)
    fit = pack_documents(starts, length)
    targets = [
        begin + 1 + i
        for begin, slots in zip(fit.starts.tolist(), fit.lengths.tolist(), strict=True)
        for i in range(slots)
    ]
    later = set(range(starts[-1])) - set(starts[:-1].tolist())
    assert sorted(targets) == sorted(later)
    filled = np.add.reduceat(fit.lengths, fit.row_starts[:-1])
    assert filled.max() <= length and filled.min() >= 1
    assert fit.row_starts[-1] == len(fit.starts)


def test_a_document_that_fits_a_row_is_whole_in_one():
    sizes = np.random.default_rng(0).integers(2, 33, 1000)
    starts = starts_of(sizes)
    fit = pack_documents(starts, 32)
    assert sorted(fit.starts) == starts[:-1].tolist()
    assert dict(zip(fit.starts.tolist(), fit.lengths.tolist(), strict=True)) == dict(
        zip(starts[:-1].tolist(), (sizes - 1).tolist(), strict=True)
    )


def test_a_long_document_is_full_rows_and_a_rest_that_repeat_one_token():
    fit = pack_documents(starts_of([24]), 10)
    assert list(zip(fit.starts, fit.lengths, strict=True)) == [
        (0, 10),
        (10, 10),
        (20, 3),
    ]


def test_the_same_documents_are_packed_once(cache, monkeypatch):
    starts = starts_of([5, 9, 3])
    fit = load_or_pack(starts, {"a": "b"}, 8)
    monkeypatch.setattr("lmx.data.sampling.best_fit.pack_documents", packs_again)
    for got, wanted in zip(load_or_pack(starts, {"a": "b"}, 8), fit, strict=True):
        assert got.tolist() == wanted.tolist()
    for other in (({"a": "c"}, 8), ({"a": "b"}, 9)):
        with pytest.raises(AssertionError, match="packed again"):
            load_or_pack(starts, *other)


def packs_again(starts, length):
    raise AssertionError("packed again")


@pytest.mark.parametrize("name", ["firsts", "begins", "slots", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_packing_is_made_anew(cache, name, how, caplog):
    starts = starts_of(range(2, 30))
    whole = [array.tolist() for array in load_or_pack(starts, {}, 16)]
    [folder] = (cache / "rows").iterdir()
    content = (folder / name).read_bytes()
    if how == "gone":
        (folder / name).unlink()
    else:
        middle = len(content) // 2
        flipped = (
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
        (folder / name).write_bytes(content[:-1] if how == "cut" else flipped)
    with caplog.at_level(logging.WARNING):
        assert [array.tolist() for array in load_or_pack(starts, {}, 16)] == whole
    assert "made anew" in caplog.text


def test_documents_of_one_token_each_are_refused():
    with pytest.raises(ConfigError, match="no document has two tokens"):
        pack_documents(starts_of([1, 1, 0]), 8)
