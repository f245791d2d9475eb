"""What reading a store must keep, however its tokens lie."""

import os
import pickle
import shutil

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.text import Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.checksum import BLOCK_BYTES, FileChecksum, find_mismatches
from lmx.data.store.executor import ProcessPool
from lmx.data.store.store import (
    MANIFEST_FILE,
    SHARDS_FILE,
    STARTS_FILE,
    Store,
    format_shard_name,
    open_store,
    verify,
)
from lmx.data.tokenizer.base import ByteTokenizer

SIZES = [(5,), (0, 3, 0, 0, 4, 1, 0), (0, 0), (2, 2, 2)]


def parted(sizes) -> tuple[Store, np.ndarray]:
    """A store of parts of these sizes, and the same tokens in one array."""
    tokens = np.random.default_rng(0).integers(0, 60000, sum(sizes), np.uint16)
    borders = np.cumsum([0, *sizes])
    parts = [tokens[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    starts = np.array([0, len(tokens)])
    store = Store(
        parts=parts,
        part_offsets=borders,
        starts=starts,
        bytes=0,
        fingerprint={},
        sources={},
    )
    return store, tokens


@pytest.mark.parametrize("sizes", SIZES)
def test_every_stretch_is_read_across_every_border(sizes):
    store, tokens = parted(sizes)
    for begin in range(len(tokens) + 1):
        for end in range(begin, len(tokens) + 1):
            np.testing.assert_array_equal(store.read(begin, end), tokens[begin:end])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 0), (1, 1, 1)])
def test_tokens_are_taken_from_anywhere_in_any_shape(sizes, shape):
    store, tokens = parted(sizes)
    if len(tokens) or 0 in shape:
        index = np.random.default_rng(1).integers(0, max(1, len(tokens)), shape)
        np.testing.assert_array_equal(store.take(index), tokens[index])


def test_a_stretch_within_one_shard_is_not_copied():
    store, tokens = parted((2, 4, 2))
    assert np.shares_memory(store.read(3, 6), tokens)
    assert not np.shares_memory(store.read(1, 6), tokens)


@pytest.mark.parametrize("place", [-1, 8])
def test_what_is_not_in_the_stream_is_refused(place):
    store, _ = parted((3, 5))
    with pytest.raises(IndexError, match="8 tokens"):
        store.take(np.array([0, place]))
    with pytest.raises(IndexError, match="8 tokens"):
        store.read(*sorted((place, 9)))


@pytest.mark.parametrize(
    "cuts", [[], [1], [BLOCK_BYTES], [5, BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 3]]
)
def test_a_digest_is_the_same_however_the_bytes_come(cuts):
    data = np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 100)
    whole, pieces = FileChecksum(), FileChecksum()
    whole.update(data)
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        pieces.update(data[begin:end])
    assert whole.to_json() == pieces.to_json()
    other = FileChecksum()
    other.update(data[:BLOCK_BYTES] + b"?" + data[BLOCK_BYTES + 1 :])
    assert list(find_mismatches(other.to_json(), whole.to_json())) == [
        (BLOCK_BYTES, 2 * BLOCK_BYTES)
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store of several shards, which no test changes."""
    root = tmp_path_factory.mktemp("built")
    (root / "texts").mkdir()
    for name in range(40):
        (root / "texts" / f"{name:02}.txt").write_text(f"text {name} " * 50)
    corpus = Text(path=f"{root / 'texts'}")
    one = ProcessPool(workers=1)
    page = BuildTokenStore(
        sources={"a": corpus}, tokenizer=ByteTokenizer(), shard_bytes=4000, executor=one
    )
    page.write(root / "store")
    return root / "store"


@pytest.fixture
def folder(built, tmp_path):
    """A copy of that store."""
    return shutil.copytree(built, tmp_path / "store")


def flip(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_whole_store_has_no_damage_and_can_be_sent_to_a_process(built):
    store = open_store(built)
    assert list(verify(built)) == []
    parts = pickle.loads(pickle.dumps(store.parts))
    assert len(parts) > 3
    np.testing.assert_array_equal(np.concatenate(parts), store.read(0, store.size))


@pytest.mark.parametrize(
    "name", [format_shard_name(0), format_shard_name(2), STARTS_FILE]
)
def test_a_flipped_byte_is_refused_with_its_file_and_place(folder, name):
    flip(folder / name, 17)
    size = (folder / name).stat().st_size
    with pytest.raises(ConfigError, match=f"{name} is .* byte 0 and byte {size}"):
        open_store(folder)


def test_a_large_store_is_verified_when_asked(folder, monkeypatch):
    monkeypatch.setattr("lmx.data.store.store.VERIFY_BYTES", 0)
    flip(folder / format_shard_name(1), 17)
    open_store(folder)
    (damage,) = verify(folder)
    assert f"{folder / format_shard_name(1)} is damaged between byte 0" in f"{damage}"


@pytest.mark.parametrize("name", [format_shard_name(2), STARTS_FILE])
def test_a_cut_file_is_refused_at_every_opening(folder, name, monkeypatch):
    monkeypatch.setattr("lmx.data.store.store.VERIFY_BYTES", 0)
    size = (folder / name).stat().st_size
    os.truncate(folder / name, 10)
    with pytest.raises(ConfigError, match=f"{name} ends at byte 10, and had {size}"):
        open_store(folder)
    (damage,) = verify(folder)
    assert "ends at byte 10" in f"{damage}"


def test_a_shard_that_is_gone_is_refused(folder):
    (folder / format_shard_name(1)).unlink()
    with pytest.raises(ConfigError, match=f"{format_shard_name(1)} ends at byte 0"):
        open_store(folder)
    (damage,) = verify(folder)
    assert "No such file" in f"{damage}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (MANIFEST_FILE, "{", "is damaged"),
        (
            MANIFEST_FILE,
            '{"layout": 1}',
            "of layout 1, this lmx reads 2: build it again",
        ),
        (MANIFEST_FILE, '{"layout": 2}', "KeyError"),
        (SHARDS_FILE, "\n\n\n\n\n\n\n\n\n\n", "line 1 is damaged"),
    ],
)
def test_a_damaged_description_is_refused(folder, name, content, words):
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        open_store(folder)


def test_another_folder_is_no_store(tmp_path):
    with pytest.raises(ConfigError, match="is no token store, it has no manifest"):
        open_store(tmp_path)
