"""Parameters from files: all of them, only what is asked for, and nothing left over."""

import random

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.core.sharding import RULES, Mesh, shardings, with_shardings
from lmx.models.hf.checkpoint import HFCheckpoint, init_abstract
from lmx.models.hf.layout import group_by_param
from lmx.models.hf.load import flatten_params, load_params, read_slice

MESHES = [Mesh(data=1, fsdp=4, tensor=2), Mesh(data=2, fsdp=2, tensor=2), Mesh(data=8)]


def opened(folder, dtype="float32"):
    """A source, its parts, and the shapes of its parameters."""
    source = HFCheckpoint.open(folder)
    model = init_abstract(source.to_config(dtype))
    return source, source.map_tensors(model), nnx.state(model)


def on(mesh, shapes):
    over = mesh.build(jax.devices(), RULES)
    return with_shardings(shapes, shardings(shapes, over, RULES))


def whole(folder, dtype="float32"):
    """Every parameter, by its path, on one device."""
    source, parts, shapes = opened(folder, dtype)
    return flatten_params(load_params(source.weights, parts, on(Mesh(data=1), shapes)))


@pytest.fixture
def even(llama):
    """A folder whose every dimension can be split eight ways, or four by two."""
    return llama(vocab_size=40, num_attention_heads=8, num_key_value_heads=8)


def test_the_parameters_are_the_tensors_rearranged_by_hand(llama, weights):
    folder = llama()
    found = whole(folder)
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
def test_a_mesh_gets_what_one_device_gets_and_reads_each_byte_once(even, mesh):
    source, parts, shapes = opened(even)
    found = load_params(source.weights, parts, like := on(mesh, shapes))
    for path, leaf in flatten_params(found).items():
        assert leaf.sharding == flatten_params(like)[path].sharding
        np.testing.assert_array_equal(leaf, whole(even)[path])
    stored = sum(tensor.bytes for tensor in source.weights.tensors.values())
    assert source.weights.bytes_read == stored


def test_a_share_reads_its_own_bytes_and_no_others(even):
    source, parts, shapes = opened(even)
    for path, leaf in flatten_params(on(MESHES[0], shapes)).items():
        before = source.weights.bytes_read
        places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        index = [*places.values()][3]
        got = read_slice(source.weights, group_by_param(parts)[path], leaf, list, index)
        assert got.shape == leaf.sharding.shard_shape(leaf.shape)
        assert source.weights.bytes_read - before == got.nbytes


def test_any_slice_equals_the_slice_of_the_whole(llama):
    source, parts, shapes = opened(llama())
    dice, everything = random.Random(0), whole(llama())
    for path, leaf in flatten_params(shapes).items():
        for _ in range(5):
            bounds = [sorted(dice.sample(range(n + 1), 2)) for n in leaf.shape]
            index = tuple(slice(*pair) for pair in bounds)
            got = read_slice(
                source.weights, group_by_param(parts)[path], leaf, list, index
            )
            np.testing.assert_array_equal(got, everything[path][index])


def test_many_files_hold_what_one_holds(llama):
    one, many = whole(llama()), whole(llama(files=4))
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
def test_every_float_dtype_is_kept_or_held_without_loss(llama, stored, kept):
    source, parts, _ = opened(folder := llama(stored), "bfloat16")
    dtype = source.infer_dtype(init_abstract(source.to_config("bfloat16")), parts)
    assert dtype == kept
    with jax.enable_x64(True):
        table = whole(folder, dtype)["embedding"]
    assert table.dtype == kept
    wide = source.weights.view("model.embed_tokens.weight").astype(np.float64)
    np.testing.assert_array_equal(np.asarray(table).astype(np.float64), wide)


def test_dtypes_that_differ_meet_in_the_one_that_holds_both(llama):
    extra = {"model.norm.weight": np.ones(16, np.float32)}
    folder = llama(ml_dtypes.bfloat16, extra=extra)
    source, parts, _ = opened(folder, "bfloat16")
    assert (
        source.infer_dtype(init_abstract(source.to_config("bfloat16")), parts)
        == "float32"
    )


def test_integers_are_refused_as_weights(llama):
    extra = {"model.norm.weight": np.ones(16, np.int8)}
    source, parts, _ = opened(llama(extra=extra), "bfloat16")
    with pytest.raises(ConfigError, match="int8 are quantized"):
        source.infer_dtype(init_abstract(source.to_config("bfloat16")), parts)


def test_tied_files_need_no_head_and_their_copy_must_be_one(llama, weights):
    table = weights["model.embed_tokens.weight"]
    tied = llama(tie_word_embeddings=True, drop=["lm_head.weight"])
    assert "head.out.w" not in whole(tied)
    assert "head.out.w" not in whole(llama(tie_word_embeddings=True))
    same = llama(tie_word_embeddings=True, extra={"lm_head.weight": table.copy()})
    assert "head.out.w" not in whole(same)
    other = llama(tie_word_embeddings=True, extra={"lm_head.weight": table + 1})
    with pytest.raises(ConfigError, match="lm_head.weight is not model.embed_tokens"):
        whole(other)


def test_what_is_missing_left_over_or_misshapen_is_named(llama):
    norm = "model.layers.1.input_layernorm.weight"
    with pytest.raises(ConfigError, match=f"the files lack {norm}"):
        whole(llama(drop=[norm]))
    with pytest.raises(ConfigError, match="has no place for model.layers.3.mystery"):
        whole(llama(extra={"model.layers.3.mystery": np.zeros(3, np.float32)}))
    short = {"model.embed_tokens.weight": np.zeros((36, 16), np.float32)}
    with pytest.raises(ConfigError, match=r"\(36, 16\) and the model needs \(37, 16\)"):
        whole(llama(extra=short))


def test_frequencies_that_old_files_hold_are_no_weights(llama):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert whole(llama(extra={name: np.ones(3, np.float32)}))


def test_files_of_the_bare_model_are_read_by_their_shorter_names(llama, weights):
    folder = llama(tie_word_embeddings=True)
    bare = {
        name.removeprefix("model."): tensor
        for name, tensor in weights.items()
        if name != "lm_head.weight"
    }
    want = whole(folder)
    for path, leaf in whole(llama(only=bare, tie_word_embeddings=True)).items():
        np.testing.assert_array_equal(leaf, want[path])
