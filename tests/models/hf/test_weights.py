"""Parameters from files: complete, only the local share, and no unused tensor."""

import random

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.core.sharding import RULES, Mesh, shardings, with_shardings
from lmx.models.hf.api import HFCheckpoint, init_abstract
from lmx.models.hf.weights import group_by_param, load_params, read_slice
from lmx.models.params import flatten_params

MESHES = [Mesh(data=1, fsdp=4, tensor=2), Mesh(data=2, fsdp=2, tensor=2), Mesh(data=8)]


def open_checkpoint(folder, dtype="float32"):
    """A checkpoint, the slices of its tensors, and the shapes of its parameters."""
    source = HFCheckpoint(folder)
    model = init_abstract(source.to_config(dtype))
    return source, source.map_tensors(model), nnx.state(model)


def place(mesh, shapes):
    over = mesh.build(jax.devices(), RULES)
    return with_shardings(shapes, shardings(shapes, over, RULES))


def load_all(folder, dtype="float32"):
    """Every parameter by its path, on one device."""
    source, parts, shapes = open_checkpoint(folder, dtype)
    return flatten_params(
        load_params(source.weights, parts, place(Mesh(data=1), shapes))
    )


@pytest.fixture
def even(llama):
    """A folder whose dimensions divide by eight, and by four times two."""
    return llama(vocab_size=40, num_attention_heads=8, num_key_value_heads=8)


def test_parameters_equal_tensors_rearranged_by_hand(llama, weights):
    folder = llama()
    found = load_all(folder)
    q = weights["model.layers.2.self_attn.q_proj.weight"]
    k = weights["model.layers.1.self_attn.k_proj.weight"]
    out = weights["model.layers.0.self_attn.o_proj.weight"]
    blocks = "stack.cycles.0.blocks.0"
    for d, n, h in [(0, 0, 0), (3, 2, 5), (15, 3, 1)]:
        assert found[f"{blocks}.attention.q.w"][2, d, n, h] == q[n * 6 + h, d]
        assert found[f"{blocks}.attention.out.w"][0, n, h, d] == out[d, n * 6 + h]
    assert found[f"{blocks}.attention.k.w"][1, 7, 1, 4] == k[6 + 4, 7]
    head = weights["lm_head.weight"]
    np.testing.assert_array_equal(found["head.out.w"], head.T)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_loads_what_one_device_loads_and_reads_each_byte_once(even, mesh):
    source, parts, shapes = open_checkpoint(even)
    found = load_params(source.weights, parts, like := place(mesh, shapes))
    for path, leaf in flatten_params(found).items():
        assert leaf.sharding == flatten_params(like)[path].sharding
        np.testing.assert_array_equal(leaf, load_all(even)[path])
    stored = sum(tensor.nbytes for tensor in source.weights.tensors.values())
    assert source.weights.bytes_read == stored


def test_reading_a_shard_reads_only_its_bytes(even):
    source, parts, shapes = open_checkpoint(even)
    for path, leaf in flatten_params(place(MESHES[0], shapes)).items():
        before = source.weights.bytes_read
        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        index = zip([*indices.values()][3], leaf.shape, strict=True)
        bounds = [part.indices(size)[:2] for part, size in index]
        slices = group_by_param(parts)[path]
        got = read_slice(source.weights, slices, leaf.dtype, list, bounds)
        assert got.shape == leaf.sharding.shard_shape(leaf.shape)
        assert source.weights.bytes_read - before == got.nbytes


def test_a_slice_read_alone_equals_the_slice_of_the_parameter(llama):
    source, parts, shapes = open_checkpoint(llama())
    dice, everything = random.Random(0), load_all(llama())
    for path, leaf in flatten_params(shapes).items():
        for _ in range(5):
            bounds = [sorted(dice.sample(range(n + 1), 2)) for n in leaf.shape]
            slices = group_by_param(parts)[path]
            got = read_slice(source.weights, slices, leaf.dtype, list, bounds)
            index = tuple(slice(*pair) for pair in bounds)
            np.testing.assert_array_equal(got, everything[path][index])


def test_sharded_files_equal_a_single_file(llama):
    one, many = load_all(llama()), load_all(llama(files=4))
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, many[path])


@pytest.mark.parametrize(
    "stored, kept",
    [
        (np.float32, "float32"),
        (np.float16, "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.float64, "float64"),
        (ml_dtypes.float8_e4m3fn, "bfloat16"),
    ],
)
def test_every_float_dtype_is_loaded_without_loss(llama, stored, kept):
    source, parts, _ = open_checkpoint(folder := llama(stored), "bfloat16")
    dtype = source.infer_dtype(init_abstract(source.to_config("bfloat16")), parts)
    assert dtype == kept
    with jax.enable_x64(True):
        table = load_all(folder, dtype)["embedding"]
    assert table.dtype == kept
    wide = source.weights.view("model.embed_tokens.weight").astype(np.float64)
    np.testing.assert_array_equal(np.asarray(table).astype(np.float64), wide)


def test_mixed_dtypes_are_promoted_to_one_that_holds_both(llama):
    extra = {"model.norm.weight": np.ones(16, np.float32)}
    folder = llama(ml_dtypes.bfloat16, extra=extra)
    source, parts, _ = open_checkpoint(folder, "bfloat16")
    assert (
        source.infer_dtype(init_abstract(source.to_config("bfloat16")), parts)
        == "float32"
    )


def test_integer_weights_are_refused(llama):
    extra = {"model.norm.weight": np.ones(16, np.int8)}
    source, parts, _ = open_checkpoint(llama(extra=extra), "bfloat16")
    with pytest.raises(ConfigError, match="int8 are quantized"):
        source.infer_dtype(init_abstract(source.to_config("bfloat16")), parts)


def test_tied_files_need_no_head_and_a_copy_must_equal_the_embedding(llama, weights):
    table = weights["model.embed_tokens.weight"]
    tied = llama(tie_word_embeddings=True, drop=["lm_head.weight"])
    assert "head.out.w" not in load_all(tied)
    assert "head.out.w" not in load_all(llama(tie_word_embeddings=True))
    same = llama(tie_word_embeddings=True, extra={"lm_head.weight": table.copy()})
    assert "head.out.w" not in load_all(same)
    other = llama(tie_word_embeddings=True, extra={"lm_head.weight": table + 1})
    with pytest.raises(
        ConfigError, match="lm_head.weight differs from model.embed_tokens"
    ):
        load_all(other)


def test_missing_unused_and_misshapen_tensors_are_named(llama):
    norm = "model.layers.1.input_layernorm.weight"
    with pytest.raises(ConfigError, match=f"the files lack {norm}"):
        load_all(llama(drop=[norm]))
    with pytest.raises(
        ConfigError, match="has no parameter for model.layers.3.mystery"
    ):
        load_all(llama(extra={"model.layers.3.mystery": np.zeros(3, np.float32)}))
    short = {"model.embed_tokens.weight": np.zeros((36, 16), np.float32)}
    with pytest.raises(ConfigError, match=r"\(36, 16\) and the model needs \(37, 16\)"):
        load_all(llama(extra=short))


def test_rotary_frequencies_of_old_files_are_ignored(llama):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert load_all(llama(extra={name: np.ones(3, np.float32)}))


def test_files_of_the_bare_model_have_shorter_names(llama, weights):
    folder = llama(tie_word_embeddings=True)
    bare = {
        name.removeprefix("model."): tensor
        for name, tensor in weights.items()
        if name != "lm_head.weight"
    }
    want = load_all(folder)
    for path, leaf in load_all(llama(only=bare, tie_word_embeddings=True)).items():
        np.testing.assert_array_equal(leaf, want[path])
