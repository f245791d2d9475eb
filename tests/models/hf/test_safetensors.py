"""Safetensors against the format's own library, and the refusal of what is broken."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
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


def written(folder, tensors, limit=10**9):
    described = [
        TensorInfo(n, array.dtype, array.shape) for n, array in tensors.items()
    ]
    write_tensors(folder, described, lambda tensor: tensors[tensor.name], limit)


@pytest.mark.parametrize("code", PLAIN)
def test_what_the_library_writes_is_read_as_it_reads_it(code, tmp_path):
    tensors = {"a": some(DTYPES[code]), "b.c": some(DTYPES[code], (4,))}
    save_file(tensors, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(folder.view(name), array)
        assert folder.view(name).dtype == array.dtype


@pytest.mark.parametrize("code", PLAIN)
def test_what_is_written_the_library_reads(code, tmp_path):
    tensors = {"a": some(DTYPES[code]), "b.c": some(DTYPES[code], (4,))}
    written(tmp_path, tensors)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
    with safe_open(tmp_path / "model.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_dtypes_that_numpy_lacks_come_back_bit_by_bit(dtype, tmp_path):
    array = some(dtype)
    written(tmp_path, {"a": array})
    np.testing.assert_array_equal(SafetensorsFolder(tmp_path).view("a"), array)


def test_shards_stay_below_their_limit_and_the_index_names_them(tmp_path):
    tensors = {f"t{n}": some(np.float32, (n + 1, 4)) for n in range(6)}
    written(tmp_path, tensors, limit=100)
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


def test_opening_reads_no_tensor_and_taking_counts_what_is_taken(tmp_path):
    written(tmp_path, {"a": some(np.float32, (8, 4))})
    folder = SafetensorsFolder(tmp_path)
    assert folder.bytes_read == 0
    folder.read_into(np.empty((2, 4)), "a", lambda tensor: tensor[2:4])
    assert folder.bytes_read == 2 * 4 * 4


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle at all")
    with pytest.raises(ConfigError, match="pickle runs whatever code"):
        SafetensorsFolder(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    written(tmp_path, {"a": some(np.float32), "b": some(np.float32)}, limit=1)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks model-00002-of-00002"):
        SafetensorsFolder(tmp_path)


def test_shards_without_an_index_are_refused(tmp_path):
    written(tmp_path, {"a": some(np.float32), "b": some(np.float32)}, limit=1)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConfigError, match="2 files of weights and no"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("keep", [4, 20, -1])
def test_a_file_cut_short_is_refused(keep, tmp_path):
    written(tmp_path, {"a": some(np.float32)})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ConfigError, match="cut short"):
        SafetensorsFolder(tmp_path)


def test_a_folder_of_nothing_says_what_is_wanted(tmp_path):
    with pytest.raises(ConfigError, match="no \\*.safetensors"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        SafetensorsFolder(pathlib.Path(tmp_path, "gone"))
