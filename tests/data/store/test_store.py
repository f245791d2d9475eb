"""Reading and verification of token stores."""

import json
import os
import pickle
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.store.store import (
    BLOCK_BYTES,
    MANIFEST_FILE,
    SHARDS_FILE,
    STARTS_FILE,
    MappedShards,
    Store,
    compute_checksum,
    find_mismatches,
    format_shard_name,
    open_store,
    verify,
    write_checksummed,
)
from lmx.data.text_dataset import select_source
from tests.data.store.conftest import make_config

SIZES = [(5,), (0, 3, 0, 0, 4, 1, 0), (0, 0), (2, 2, 2)]


def make_store(sizes) -> tuple[Store, np.ndarray]:
    """A store with parts of these sizes, and the same tokens in one array."""
    tokens = np.random.default_rng(0).integers(0, 60000, sum(sizes), np.uint16)
    offsets = np.cumsum([0, *sizes])
    store = Store(
        parts=[tokens[a:b] for a, b in zip(offsets, offsets[1:], strict=False)],
        part_offsets=offsets,
        starts=np.array([0, len(tokens)]),
        bytes=0,
        fingerprint={},
        sources={},
    )
    return store, tokens


@pytest.mark.parametrize("sizes", SIZES)
def test_every_range_is_read_across_parts(sizes):
    store, tokens = make_store(sizes)
    for begin in range(len(tokens) + 1):
        for end in range(begin, len(tokens) + 1):
            np.testing.assert_array_equal(store.read(begin, end), tokens[begin:end])


def test_a_range_within_one_shard_is_not_copied():
    store, tokens = make_store((2, 4, 2))
    assert np.shares_memory(store.read(3, 6), tokens)
    assert not np.shares_memory(store.read(1, 6), tokens)


@pytest.mark.parametrize("position", [-1, 8])
def test_positions_outside_the_stream_are_refused(position):
    store, _ = make_store((3, 5))
    with pytest.raises(IndexError, match="8 tokens"):
        store.read(*sorted((position, 9)))


@pytest.mark.parametrize(
    "cuts", [[], [1], [BLOCK_BYTES], [5, BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 3]]
)
def test_a_checksum_does_not_depend_on_the_chunks(cuts):
    data = np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 100)
    bounds = zip([0, *cuts], [*cuts, len(data)], strict=True)
    checksum = compute_checksum([data])
    assert compute_checksum(data[begin:end] for begin, end in bounds) == checksum
    damaged = data[:BLOCK_BYTES] + b"?" + data[BLOCK_BYTES + 1 :]
    mismatches = find_mismatches(compute_checksum([damaged]), checksum)
    assert list(mismatches) == [(BLOCK_BYTES, 2 * BLOCK_BYTES)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store of several shards, which no test changes."""
    root = tmp_path_factory.mktemp("built")
    (root / "texts").mkdir()
    for name in range(40):
        (root / "texts" / f"{name:02}.txt").write_text(f"text {name} " * 50)
    make_config(root / "texts", shard_bytes=4000).write(root / "store")
    return root / "store"


@pytest.fixture
def folder(built, tmp_path):
    """A copy of that store."""
    return shutil.copytree(built, tmp_path / "store")


def flip_bit(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_intact_store_has_no_damage_and_can_be_pickled(built):
    store = open_store(built)
    assert list(verify(built)) == []
    parts = pickle.loads(pickle.dumps(store.parts))
    assert len(parts) > 3
    np.testing.assert_array_equal(np.concatenate(parts), store.read(0, store.size))


@pytest.mark.parametrize(
    "name", [format_shard_name(0), format_shard_name(2), STARTS_FILE, SHARDS_FILE]
)
def test_a_flipped_bit_is_refused_with_its_file_and_range(folder, name):
    flip_bit(folder / name, 17)
    size = (folder / name).stat().st_size
    with pytest.raises(ConfigError, match=f"{name} is .* byte 0 and byte {size}"):
        open_store(folder)


def test_a_large_store_is_verified_by_block_when_first_read(folder, monkeypatch):
    """A damaged block is refused before its tokens are used, also by one source."""
    monkeypatch.setattr("lmx.data.store.store.VERIFY_BYTES", 0)
    flip_bit(folder / format_shard_name(1), 17)
    store = open_store(folder)
    message = f"{folder / format_shard_name(1)} is damaged between byte 0"
    begin, end, *_ = store.part_offsets[1:].tolist()
    one = select_source(store, folder, store.locate(0)[0])
    for part in (store, one, pickle.loads(pickle.dumps(store))):
        assert len(part.read(0, begin)) == begin
        for _ in range(2):
            with pytest.raises(ConfigError, match=message):
                part.read(begin - 1, begin + 1)
    assert len(store.read(end, store.size))
    (damage,) = verify(folder)
    assert message in f"{damage}"


def test_each_block_of_a_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lmx.data.store.store.BLOCK_BYTES", 64)
    tokens = np.arange(100, dtype="<u2")
    record = write_checksummed(tmp_path / "a", [tokens.tobytes()])
    checked = []

    def crc32(data, value=0):
        checked.append(bytes(data))
        return zlib.crc32(data, value)

    monkeypatch.setattr("lmx.data.store.store.zlib", SimpleNamespace(crc32=crc32))
    shards = MappedShards([tmp_path / "a"], tokens.dtype, [record["blocks"]])
    for begin, end, blocks in ((40, 50, [1]), (31, 41, [0]), (0, 100, [2, 3])):
        shards.verify(0, begin, end)
        data = tokens.tobytes()
        assert checked == [data[64 * n : 64 * n + 64] for n in blocks]
        checked.clear()
    shards.verify(0, 0, 0)
    shards.verify(0, 0, 100)
    assert not checked


@pytest.mark.parametrize("name", [format_shard_name(2), STARTS_FILE])
def test_a_truncated_file_is_always_refused(folder, name, monkeypatch):
    monkeypatch.setattr("lmx.data.store.store.VERIFY_BYTES", 0)
    size = (folder / name).stat().st_size
    os.truncate(folder / name, 10)
    with pytest.raises(ConfigError, match=f"{name} ends at byte 10 but had {size}"):
        open_store(folder)
    (damage,) = verify(folder)
    assert "ends at byte 10" in f"{damage}"


def test_a_missing_shard_is_refused(folder):
    (folder / format_shard_name(1)).unlink()
    with pytest.raises(ConfigError, match=f"{format_shard_name(1)} ends at byte 0"):
        open_store(folder)
    (damage,) = verify(folder)
    assert "No such file" in f"{damage}"


def test_a_file_with_bytes_behind_its_end_is_read_without_them(folder):
    """As many as are no whole token."""
    expected = open_store(folder).read(0, 100).tolist()
    with (folder / format_shard_name(0)).open("ab") as file:
        file.write(b"x")
    assert open_store(folder).read(0, 100).tolist() == expected


def test_a_size_beyond_all_files_is_refused_at_once(folder):
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["records"]["bytes"] = 2**70
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=f"{SHARDS_FILE} ends at byte"):
        open_store(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (MANIFEST_FILE, "{", "is damaged"),
        (MANIFEST_FILE, "[]", "is damaged"),
        (MANIFEST_FILE, '{"layout": 2}', "version None, this lmx reads 3: build"),
        (MANIFEST_FILE, '{"version": 2}', "version 2, this lmx reads 3: build"),
        (MANIFEST_FILE, '{"version": 3}', "KeyError"),
        (SHARDS_FILE, "\n\n", f"{SHARDS_FILE} ends at byte 2"),
    ],
)
def test_a_damaged_description_is_refused(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        open_store(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a token store, it has no manifest"):
        open_store(tmp_path)
