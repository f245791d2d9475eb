"""Safetensors against the reference library, and refusal of broken files."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from lmx.config.registry import ConfigError
from lmx.models.hf.safetensors import (
    DTYPES,
    INDEX,
    SafetensorsFolder,
    TensorInfo,
    write_tensors,
)

PLAIN = [code for code, dtype in DTYPES.items() if dtype.isbuiltin == 1]


def some(dtype, shape=(3, 5)):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def write(folder, tensors, limit=10**9):
    infos = [TensorInfo(n, array.dtype, array.shape) for n, array in tensors.items()]
    write_tensors(folder, infos, lambda tensor: tensors[tensor.name], limit)


@pytest.mark.parametrize("code", PLAIN)
def test_files_of_the_library_are_read_as_it_reads_them(code, tmp_path):
    tensors = {"a": some(DTYPES[code]), "b.c": some(DTYPES[code], (4,))}
    save_file(tensors, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(folder.view(name), array)
        assert folder.view(name).dtype == array.dtype


@pytest.mark.parametrize("code", PLAIN)
def test_the_library_reads_written_files(code, tmp_path):
    tensors = {"a": some(DTYPES[code]), "b.c": some(DTYPES[code], (4,))}
    write(tmp_path, tensors)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
    with safe_open(tmp_path / "model.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_dtypes_that_numpy_lacks_round_trip_exactly(dtype, tmp_path):
    array = some(dtype)
    write(tmp_path, {"a": array})
    np.testing.assert_array_equal(SafetensorsFolder(tmp_path).view("a"), array)


def test_shards_stay_below_the_limit_and_are_in_the_index(tmp_path):
    tensors = {f"t{n}": some(np.float32, (n + 1, 4)) for n in range(6)}
    write(tmp_path, tensors, limit=100)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert {file.name for file in files} == set(index["weight_map"].values())
    for file in files:
        inside = load_file(file)
        assert len(inside) == 1 or sum(t.nbytes for t in inside.values()) <= 100
    folder = SafetensorsFolder(tmp_path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(folder.view(name), array)


def test_opening_reads_no_tensor_and_reading_counts_bytes(tmp_path):
    write(tmp_path, {"a": some(np.float32, (8, 4))})
    folder = SafetensorsFolder(tmp_path)
    assert folder.bytes_read == 0
    folder.read_into(np.empty((2, 4)), "a", lambda tensor: tensor[2:4])
    assert folder.bytes_read == 2 * 4 * 4


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle at all")
    with pytest.raises(ConfigError, match="pickle runs whatever code"):
        SafetensorsFolder(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, {"a": some(np.float32), "b": some(np.float32)}, limit=1)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks 'model-00002-of-00002"):
        SafetensorsFolder(tmp_path)


def test_shards_without_an_index_are_refused(tmp_path):
    write(tmp_path, {"a": some(np.float32), "b": some(np.float32)}, limit=1)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConfigError, match="2 files of weights and no"):
        SafetensorsFolder(tmp_path)


def test_a_single_file_goes_before_the_index_of_the_same_tensors(tmp_path, capsys):
    old = {"a": some(np.float32), "b": some(np.float32)}
    new = {name: array + 1 for name, array in old.items()}
    write(tmp_path, old, limit=1)
    write(tmp_path, new)
    folder = SafetensorsFolder(tmp_path)
    assert "reads model.safetensors and not its model.saf" in capsys.readouterr().err
    for name, array in new.items():
        np.testing.assert_array_equal(folder.view(name), array)
    index = {"weight_map": dict.fromkeys(new, "model.safetensors")}
    (tmp_path / INDEX).write_text(json.dumps(index))
    SafetensorsFolder(tmp_path)
    assert not capsys.readouterr().err


def test_a_single_file_and_an_index_of_other_tensors_are_refused(tmp_path):
    write(tmp_path, {"a": some(np.float32), "b": some(np.float32)}, limit=1)
    write(tmp_path, {"a": some(np.float32), "c": some(np.float32)})
    with pytest.raises(ConfigError, match="other tensors .*b, c.* remove the one"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"weight_map": {"a": "mod', "is not JSON"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("[1]", "must hold a JSON object"),
        ("{}", "weight_map must be Mapping"),
        ('{"weight_map": ["a"]}', "weight_map must be Mapping"),
        ('{"weight_map": {"a": 1}}', "weight_map must be Mapping"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "lacks '../model"),
        ('{"weight_map": {"a": "' + "x" * 5000 + '"}}', "lacks 'xxx"),
        ('{"weight_map": {"a": "x\\u0000y"}}', "lacks 'x.x00y"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": ""}}', "twice"),
    ],
)
def test_a_broken_index_is_refused(text, message, tmp_path):
    write(tmp_path, {"a": some(np.float32), "b": some(np.float32)}, limit=1)
    (tmp_path.parent / "model.safetensors").touch()
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ConfigError, match=message):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("keep", [4, 20, -1])
def test_a_file_cut_short_is_refused(keep, tmp_path):
    write(tmp_path, {"a": some(np.float32)})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ConfigError, match="cut short"):
        SafetensorsFolder(tmp_path)


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no \\*.safetensors"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        SafetensorsFolder(pathlib.Path(tmp_path, "missing"))


def entry(start, stop, shape=(2,), **changes):
    fields = {"dtype": "U8", "shape": list(shape), "data_offsets": [start, stop]}
    return json.dumps(fields | changes)


def write_header(folder, *entries, content=b"1234", metadata='{"format": "pt"}'):
    """A file with that content, and with these entries for tensors a, b, c, ..."""
    rows = [f'"{chr(97 + n)}": {row}' for n, row in enumerate(entries)]
    text = f'{{"__metadata__": {metadata}, {", ".join(rows)}}}'.encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return file


def assert_both_refuse(file, message):
    """The library refuses the file, and so does lmx, with that message."""
    with pytest.raises(SafetensorError):
        load_file(file)
    with pytest.raises(ConfigError, match=message):
        SafetensorsFolder(file.parent)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([entry(0, 2), entry(1, 3), entry(2, 4)], id="overlap"),
        pytest.param([entry(0, 2), entry(0, 2), entry(2, 4)], id="one place"),
        pytest.param([entry(1, 3)], id="shifted"),
        pytest.param([entry(0, 1, (1,)), entry(2, 4)], id="a gap"),
        pytest.param([entry(0, 2)], id="bytes after the last"),
        pytest.param([entry(0, 4, (4,)), entry(3, 3, (0,))], id="empty inside"),
    ],
)
def test_every_byte_must_belong_to_one_tensor(entries, tmp_path):
    assert_both_refuse(write_header(tmp_path, *entries), "each byte .* one tensor")


def test_a_tensor_that_stands_twice_is_refused(tmp_path):
    twice = f'{entry(0, 2)}, "a": {entry(2, 4)}'
    assert_both_refuse(write_header(tmp_path, twice), "'a' twice")


def test_tensors_need_no_order_and_may_be_empty(tmp_path):
    rows = entry(2, 4), entry(2, 2, (0, 3)), entry(0, 2), entry(4, 4, (0,))
    folder = SafetensorsFolder(write_header(tmp_path, *rows).parent)
    assert [bytes(folder.view(name)) for name in "abcd"] == [b"34", b"", b"12", b""]
    assert folder.view("b").shape == (0, 3)
    assert load_file(tmp_path / "model.safetensors")["b"].shape == (0, 3)


@pytest.mark.parametrize(
    "row",
    [
        "7",
        "null",
        "[]",
        "{}",
        entry(0, 4, dtype="F128"),
        entry(0, 4, dtype=["U8"]),
        entry(0, 4, shape="4"),
        entry(0, 4, shape=[4.0]),
        entry(0, 4, shape=[True]),
        entry(0, 4, shape=[-2, -2]),
        entry(0, 4, data_offsets=[0]),
        entry(0, 4, data_offsets=["0", "4"]),
        entry(0, 4, data_offsets={"0": 4}),
        entry(0, 0, (0, 2**62, 2**62)),
        entry(0, 4, shape=[4, *[1] * 80]),
    ],
)
def test_a_header_entry_of_wrong_kinds_is_refused(row, tmp_path):
    write_header(tmp_path, row)
    with pytest.raises(ConfigError, match="header has a = .* must have a dtype"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("text", [b"[1]", b"1e9", b'{"a": ', b"\xff", b"[" * 10**5])
def test_a_header_that_is_no_object_is_refused(text, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ConfigError, match="header of .* (is not JSON|JSON object)"):
        SafetensorsFolder(tmp_path)
