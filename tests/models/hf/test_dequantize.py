"""Dequantization against loops over the bits that the formats define."""

import json
import random
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lmx
from lmx.config.registry import ConfigError
from lmx.core.sharding import Mesh
from lmx.models.hf.api import HFCheckpoint, load_model, save_hf
from lmx.models.hf.fields import TensorMap
from lmx.models.hf.safetensors import SafetensorsFolder
from lmx.models.hf.weights import expand_map, read_slice
from lmx.train.checkpoint.import_hf import import_hf
from tests.llama import CONFIG, tensors_of
from tests.parity.weights import weights

GPT_OSS = Path(__file__).parents[2] / "golden" / "families" / "gpt_oss.json"
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
FP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E = 2
D, F = 64, 5  # multiples of an MXFP4 block, and an odd number


def e4m3(byte):
    """A sign, 4 bits of exponent from -6, and 3 of mantissa; no infinities."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return np.nan
    size = (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
    return -size if sign else size


def by_fp8(codes, scales, block):
    """The dequantized tensor, element by element."""
    out = np.empty(codes.shape, np.float32)
    for *lead, r, c in np.ndindex(*codes.shape):
        scale = scales[*lead, r // block[0], c // block[1]]
        out[*lead, r, c] = np.float32(e4m3(int(codes[*lead, r, c]))) * np.float32(scale)
    return out


def by_mxfp4(blocks, scales):
    """The dequantized tensor, in the layout of gpt-oss, element by element."""
    experts, columns, groups, _ = blocks.shape
    out = np.empty((experts, groups * 32, columns), np.float32)
    for e, d, c in np.ndindex(*out.shape):
        byte = int(blocks[e, c, d // 32, d % 32 // 2])
        code = byte >> 4 if d % 2 else byte & 15
        size = E2M1[code & 7] * 2.0 ** (int(scales[e, c, d // 32]) - 127)
        out[e, d, c] = -size if code & 8 else size
    return out


def random_bytes(*shape, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, shape).astype(np.uint8)


def folder_of(path, how, **tensors):
    save_file(tensors, path / "model.safetensors")
    return SafetensorsFolder(path, how)


@pytest.fixture
def experts(tmp_path):
    """The two projections of gpt-oss experts, and their dequantized tensors."""
    parts, want = {}, {}
    for name, (rows, columns) in {"up": (D, 2 * F), "down": (32, D)}.items():
        blocks = random_bytes(E, columns, rows // 32, 16)
        scales = random_bytes(E, columns, rows // 32, low=118, high=135)
        parts |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        want[name] = by_mxfp4(blocks, scales)
    return folder_of(tmp_path, FP4, **parts), want


def read(folder, name, view=lambda tensor: tensor, dtype=np.float32):
    shape = view(np.empty(folder.tensors[name].shape, np.bool_)).shape
    out = np.empty(shape, dtype)
    folder.read_into(out, name, view)
    return out


SHAPES = [(4, 6), (5, 7), (2, 3), (9, 1), (3, 5, 7)]


@pytest.mark.parametrize("scale", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp8_equals_a_loop_over_its_bits_with_partial_blocks(shape, scale, tmp_path):
    codes = random_bytes(*shape)
    grid = (*shape[:-2], -(-shape[-2] // 2), -(-shape[-1] // 3))
    scales = np.random.default_rng(1).normal(size=grid).astype(scale)
    how = FP8 | {"weight_block_size": [2, 3]}
    w = codes.view(ml_dtypes.float8_e4m3fn)
    folder = folder_of(tmp_path, how, w=w, w_scale_inv=scales)
    assert folder.tensors.keys() == {"w"}
    np.testing.assert_array_equal(read(folder, "w"), by_fp8(codes, scales, (2, 3)))


def test_fp8_blocks_are_128_by_128_by_default(tmp_path):
    codes = random_bytes(130, 260) & 0xFE  # no NaN
    scales = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    w = codes.view(ml_dtypes.float8_e4m3fn)
    folder = folder_of(tmp_path, FP8, w=w, w_scale_inv=scales)
    want = by_fp8(codes, scales, (128, 128))
    np.testing.assert_array_equal(read(folder, "w"), want)
    np.testing.assert_array_equal(folder.view("w"), want.astype(ml_dtypes.bfloat16))


def test_mxfp4_equals_a_loop_over_its_bits(experts):
    folder, want = experts
    assert folder.tensors.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(read(folder, name), tensor)


def test_mxfp4_scales_are_powers_of_two_and_the_last_is_nan(tmp_path):
    blocks = np.full((1, 256, 1, 16), 0x22, np.uint8)
    scales = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    found = read(folder_of(tmp_path, FP4, w_blocks=blocks, w_scales=scales), "w")
    powers = [2.0 ** (n - 127) for n in range(255)]
    np.testing.assert_array_equal(found[0, 17], np.array([*powers, np.nan], np.float32))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_the_float32_product_is_rounded_once(experts, dtype):
    folder, want = experts
    np.testing.assert_array_equal(
        read(folder, "up", dtype=dtype), want["up"].astype(dtype)
    )


def shares(rows, shapes):
    """Tensor slices, each with bounds of random parts of its parameter."""
    dice = random.Random(0)
    for row in rows:
        for part in expand_map(row, "", (), shapes):
            for _ in range(12):
                sizes = shapes[part.path]
                bounds = [sorted(dice.sample(range(n + 1), 2)) for n in sizes]
                yield part, bounds, tuple(slice(*pair) for pair in bounds)


def test_slices_of_experts_read_only_their_bytes(experts):
    folder, want = experts
    rows = (
        TensorMap("up", ("gate", "up"), "E D (F 2) -> 2 E D F"),
        TensorMap("down", "down", "E F D -> E F D"),
    )
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, 32, D)}
    for part, bounds, index in shares(rows, shapes):
        whole = want[part.tensor]
        if part.tensor == "up":
            whole = whole[..., part.path == "up" :: 2]
        before = folder.bytes_read
        got = read_slice(folder, {(): part}, np.dtype(np.float32), list, bounds)
        np.testing.assert_array_equal(got, whole[index])
        e, rows_, columns = (
            range(n)[i] for n, i in zip(whole.shape, index, strict=True)
        )
        least = len({d // 2 for d in rows_}) + len({d // 32 for d in rows_})
        assert folder.bytes_read - before == len(e) * len(columns) * least


def test_slices_of_heads_read_only_their_bytes(tmp_path):
    N, H, size = 6, 5, 9
    codes = random_bytes(N * H, size)
    scales = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    w = codes.view(ml_dtypes.float8_e4m3fn)
    how = FP8 | {"weight_block_size": [4, 4]}
    folder = folder_of(tmp_path, how, w=w, w_scale_inv=scales)
    whole = by_fp8(codes, scales, (4, 4)).T.reshape(size, N, H)
    row = TensorMap("w", "q", "(N H) D -> D N H")
    for part, bounds, index in shares([row], {"q": (size, N, H)}):
        before = folder.bytes_read
        got = read_slice(folder, {(): part}, np.dtype(np.float32), list, bounds)
        np.testing.assert_array_equal(got, whole[index])
        d, n, h = (range(k)[i] for k, i in zip((size, N, H), index, strict=True))
        grid = {((i * H + j) // 4, k // 4) for i in n for j in h for k in d}
        assert folder.bytes_read - before == got.size + 4 * len(grid)


def test_dequantizing_in_slabs_changes_nothing(experts, monkeypatch):
    folder, want = experts
    monkeypatch.setattr("lmx.models.hf.dequantize.SLAB", 100)
    turned = read(folder, "up", lambda tensor: tensor.transpose(1, 2, 0))
    np.testing.assert_array_equal(turned, want["up"].transpose(1, 2, 0))


@pytest.fixture
def published(llama):
    """A Llama in FP8, and the same model in float32."""

    def make(**fields):
        plain = tensors_of(CONFIG | fields)
        scaled = {}
        for name, tensor in list(plain.items()):
            if "_proj" in name:
                codes = random_bytes(*tensor.shape) & 0xBF  # below 2
                grid = [-(-n // 5) for n in tensor.shape]
                scales = np.random.default_rng(1).random(grid).astype(np.float32)
                scaled[name] = codes.view(ml_dtypes.float8_e4m3fn)
                scaled[f"{name}_scale_inv"] = scales
                plain[name] = by_fp8(codes, scales, (5, 5))
            else:
                scaled[name] = tensor.astype(ml_dtypes.bfloat16)
                plain[name] = scaled[name].astype(np.float32)
        how = FP8 | {"weight_block_size": [5, 5]}
        want = lmx.load_hf(llama(only=plain, **fields))
        return llama(only=scaled, quantization_config=how, **fields), want

    return make


def test_a_llama_in_fp8_is_the_dequantized_model(published):
    folder, want = published()
    found = lmx.load_hf(folder, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)


def test_a_quantized_model_is_imported_and_exported_in_bfloat16(published, tmp_path):
    folder, want = published()
    run, out = tmp_path / "run", tmp_path / "out"
    import_hf(folder, run)
    save_hf(lmx.restore(run), out)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    rounded = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype("bfloat16"), want.params
    )
    again = lmx.load_hf(out).params
    jax.tree.map(np.testing.assert_array_equal, again, rounded)


def test_a_mesh_loads_a_quantized_model_and_one_device_reads_each_byte_once(published):
    sizes = dict(vocab_size=40, num_attention_heads=8, num_key_value_heads=8)
    folder, want = published(**sizes)
    source = HFCheckpoint(folder)
    many = load_model(source, "float32", Mesh(fsdp=4, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, many.params, want.params)
    source = HFCheckpoint(folder)
    load_model(source)
    content = sum(x.nbytes for x in SafetensorsFolder(folder).tensors.values())
    assert source.weights.bytes_read == content
    assert sum(x.nbytes for x in source.weights.tensors.values()) == content


@pytest.mark.parametrize(
    "how, message",
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method = 'gptq' is not supported"),
        ({"bits": 4}, "quant_method = 'None' is not supported"),
        ({"quant_method": "fp4"}, "did you mean 'mxfp4'"),
        (FP8 | {"zero_point": True}, "zero_point = True is an unknown field"),
        (FP8 | {"weight_block_size": None}, "weight_block_size = None must be"),
        (FP8 | {"weight_block_size": [128, 0]}, "weight_block_size = .* must be"),
        ("fp8", "quantization_config = 'fp8'"),
    ],
)
def test_other_quantizations_are_refused_by_name(how, message, llama):
    with pytest.raises(ConfigError, match=message):
        HFCheckpoint(llama(quantization_config=how)).to_config("float32")


def test_missing_and_invalid_scales_are_named(tmp_path):
    codes = np.zeros((4, 4), ml_dtypes.float8_e4m3fn)
    with pytest.raises(ConfigError, match="lack w_scale_inv, the scales of w"):
        folder_of(tmp_path, FP8, w=codes)
    for scales in (np.ones((2, 1), np.float32), np.ones((1, 1), np.uint8)):
        with pytest.raises(ConfigError, match=r"w_scale_inv has .* w needs \(1, 1\)"):
            folder_of(tmp_path, FP8, w=codes, w_scale_inv=scales)
    blocks = np.zeros((2, 3, 1, 16), np.uint8)
    with pytest.raises(ConfigError, match="lack w_scales, the scales of w_blocks"):
        folder_of(tmp_path, FP4, w_blocks=blocks)
    for scales in (np.zeros((2, 3), np.uint8), np.ones((2, 3, 1), np.float32)):
        with pytest.raises(ConfigError, match=r"w_scales has .* needs \(2, 3, 1\)"):
            folder_of(tmp_path, FP4, w_blocks=blocks, w_scales=scales)
    with pytest.raises(ConfigError, match="the last of 16 bytes of a block"):
        folder_of(tmp_path, FP4, w_blocks=blocks[..., :8], w_scales=blocks[..., 0])


def test_a_tensor_stored_both_plain_and_quantized_is_refused(tmp_path):
    blocks, scales = np.zeros((1, 2, 1, 16), np.uint8), np.zeros((1, 2, 1), np.uint8)
    plain = np.zeros((1, 32, 2), np.float32)
    with pytest.raises(ConfigError, match="has w twice, once as w_blocks"):
        folder_of(tmp_path, FP4, w=plain, w_blocks=blocks, w_scales=scales)


def test_scales_without_codes_are_refused(published, llama):
    folder, want = published()
    how = json.loads((folder / "config.json").read_text())["quantization_config"]
    files = SafetensorsFolder(folder)
    tensors = {name: np.array(files.view(name)) for name in files.tensors}
    orphan = {"lm_head.weight_scale_inv": np.ones((8, 4), np.float32)}
    source = HFCheckpoint(llama(only=tensors | orphan, quantization_config=how))
    with pytest.raises(ConfigError, match="no parameter for lm_head.weight_scale_inv"):
        source.map_tensors(want.model)


def test_gpt_oss_in_mxfp4_equals_the_dequantized_model(tmp_path):
    """The twin has weights that a loop over the bits dequantized."""
    case, layer = json.loads(GPT_OSS.read_text()), re.compile(r"model\.layers\.[1-9].*")
    config = case["config"] | dict(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        layer_types=["full_attention"],
    )
    sizes = {36: 32, 40: 32, 80: 64}  # multiples of a block
    plain = weights(
        {
            name: [sizes.get(n, int(n)) for n in shape]
            for name, shape in case["shapes"].items()
            if not layer.fullmatch(name)
        }
    )
    packed = dict(plain)
    for name in plain:
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, rows, columns = plain[name].shape
            blocks = random_bytes(experts, columns, rows // 32, 16)
            scales = random_bytes(experts, columns, rows // 32, low=118, high=122)
            del packed[name]
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            plain[name] = by_mxfp4(blocks, scales)
    params = []
    for tensors, quantization in ((packed, FP4), (plain, None)):
        folder = tmp_path / f"{quantization is None}"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        how = {"quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(config | how))
        params.append(lmx.load_hf(folder, dtype="float32").params)
    assert plain.keys() != packed.keys()
    jax.tree.map(np.testing.assert_array_equal, *params)
