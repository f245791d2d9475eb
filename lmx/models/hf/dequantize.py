"""Reads block-quantized weights (FP8, MXFP4) as the bfloat16 tensors they stand for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lmx.config.registry import ConfigError, require, suggest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3, E2M1 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float4_e2m1fn)
MX_BLOCK = 32  # elements that share a scale, in 16 bytes
SLAB = 2**20  # elements dequantized at a time, so that they stay in a cache
# Supported fields of quantization_config; the dtype of each tensor is in the files.
KNOWN_FIELDS = frozenset(
    "quant_method fmt weight_block_size scale_fmt expert_dtype activation_scheme"
    " dequantize modules_to_not_convert modules_to_convert ignored_layers".split()
)
Indices = Sequence[np.ndarray]  # along each dimension, to be broadcast to one shape
View = Callable[[np.ndarray], np.ndarray]  # selects a part without a copy


@dataclass(frozen=True)
class BlockScaledTensor:
    """A tensor in bfloat16, stored as codes of small floats and a scale for each block.

    Attributes:
        codes: bytes of one code each, or of two along the last dimension but one, the
            lower bits first.
        code_dtype: the small float.
        scales: one for each block of `block_shape`; the last may be partial.
    """

    dtype: ClassVar[np.dtype] = BFLOAT16
    codes: np.ndarray
    code_dtype: np.dtype
    scales: np.ndarray
    block_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        *lead, rows, columns = self.codes.shape
        return (*lead, rows * self._codes_per_byte, columns)

    @property
    def nbytes(self) -> int:
        """Its size in the files."""
        return self.codes.nbytes + self.scales.nbytes

    def read_into(self, out: np.ndarray, view: View) -> int:
        """Copies the part that `view` selects to `out`. Returns the bytes read."""
        at = _trace_view(self.shape, view)
        rows = max(1, SLAB * len(out) // max(1, out.size))
        for row in range(0, len(out), rows):
            slab = slice(row, row + rows)
            out[slab] = self.dequantize([i[slab] if len(i) > 1 else i for i in at])
        return self.count_bytes(at)

    def dequantize(self, at: Indices) -> np.ndarray:
        """The float32 values at these indices."""
        bits = 8 // self._codes_per_byte
        floats = np.arange(2**bits, dtype=np.uint8).view(self.code_dtype)
        shift = (at[-2] % self._codes_per_byte * bits).astype(np.uint8)
        code_index, block_index = self._locate(at)
        codes = self.codes[code_index] >> shift & (2**bits - 1)
        scales = self.scales[block_index].astype(np.float32)
        return floats.astype(np.float32)[codes] * scales

    def count_bytes(self, at: Indices) -> int:
        """The stored bytes of the values at these indices."""
        arrays = zip((self.codes, self.scales), self._locate(at), strict=True)
        return sum(
            array.itemsize * math.prod(len(np.unique(i)) for i in index)
            for array, index in arrays
        )

    @property
    def _codes_per_byte(self) -> int:
        return 8 // ml_dtypes.finfo(self.code_dtype).bits

    def _locate(self, at: Indices) -> tuple[tuple[np.ndarray, ...], ...]:
        """The indices of the codes and of the scales."""
        blocks = tuple(i // n for i, n in zip(at, self.block_shape, strict=True))
        return (*at[:-2], at[-2] // self._codes_per_byte, at[-1]), blocks


Arrays = Mapping[str, np.ndarray]
# The name of a tensor, the names of its codes and scales, and both.
QuantizedTensors = Iterator[tuple[str, tuple[str, str], BlockScaledTensor]]


def find_fp8(tensors: Arrays, config: Mapping[str, Any]) -> QuantizedTensors:
    """E4M3 with scales of rectangles of the last two dimensions, as in DeepSeek-V3.

    DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2.
    """
    size = config.get("weight_block_size", [128, 128])
    sizes = size if isinstance(size, list) else []
    require(
        [isinstance(n, int) and n > 0 for n in sizes] == [True, True],
        f"quantization_config.weight_block_size = {size!r} must be the rows and"
        " columns that share a scale, as in [128, 128].",
    )
    for name, array in tensors.items():
        shape = array.shape
        if array.dtype == E4M3 and len(shape) > 1:
            block = (*(1 for _ in shape[2:]), *sizes)
            grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
            parts = name, f"{name}_scale_inv"
            scales = _get_scales(tensors, parts, grid, jnp.floating)
            codes = array.view(np.uint8)
            yield name, parts, BlockScaledTensor(codes, E4M3, scales, block)


def find_mxfp4(tensors: Arrays, config: Mapping[str, Any]) -> QuantizedTensors:
    """E2M1 with scales along the last dimension but one, as the experts of gpt-oss.

    In the files it is the last. OCP Microscaling Formats (MX) v1.0, 2023, section 5.
    """
    del config
    for name, array in tensors.items():
        shape, tensor = array.shape, name.removesuffix("_blocks")
        if tensor != name and array.dtype == np.uint8:
            require(
                len(shape) == 4 and shape[3] == MX_BLOCK // 2,
                f"{name} has shape {shape}: it must have four dimensions, the last"
                f" of {MX_BLOCK // 2} bytes of a block.",
            )
            parts = name, f"{tensor}_scales"
            codes = array.reshape(*shape[:2], -1).swapaxes(1, 2)
            powers = _get_scales(tensors, parts, shape[:3], np.uint8).swapaxes(1, 2)
            scales, block = powers.view(ml_dtypes.float8_e8m0fnu), (1, MX_BLOCK, 1)
            yield tensor, parts, BlockScaledTensor(codes, E2M1, scales, block)


FORMATS = {"fp8": find_fp8, "mxfp4": find_mxfp4}


def _get_scales(
    tensors: Arrays, parts: tuple[str, str], shape: tuple[int, ...], kind: type
) -> np.ndarray:
    codes, scales = parts
    require(scales in tensors, f"the files lack {scales}, the scales of {codes}.")
    array = tensors[scales]
    require(
        array.shape == shape and jnp.issubdtype(array.dtype, kind),
        f"{scales} has shape {array.shape} in {array.dtype}, and {codes} needs {shape}"
        f" in {kind.__name__}: use the config.json of these weights.",
    )
    return array


def dequantize(
    tensors: Arrays, config: Mapping[str, Any], path: Path
) -> dict[str, np.ndarray | BlockScaledTensor]:
    """The tensors of `path`, with those in bfloat16 in place of codes and scales.

    `config` is the `quantization_config` of its config.json.
    """
    method = f"{config.get('quant_method')}"
    require(
        method in FORMATS,
        f"{path}: quantization_config.quant_method = {method!r} is not"
        f" supported{suggest(method, FORMATS)}: save the model in bfloat16,"
        " with transformers (from_pretrained, dequantize, save_pretrained).",
    )
    if unknown := sorted(config.keys() - KNOWN_FIELDS):
        raise ConfigError(
            f"{path}: quantization_config.{unknown[0]} = {config[unknown[0]]!r} is an"
            " unknown field: remove it if it changes no number."
        )
    result: dict[str, np.ndarray | BlockScaledTensor] = dict(tensors)
    for name, parts, quantized in FORMATS[method](tensors, config):
        for part in parts:
            del result[part]
        require(
            name not in result,
            f"{path} has {name} twice, once as {parts[0]}: remove one of them.",
        )
        result[name] = quantized
    return result


def _trace_view(shape: tuple[int, ...], view: View) -> list[np.ndarray]:
    """The indices, along each dimension of the tensor, of the elements of a view."""
    lines = np.ogrid[tuple(slice(size) for size in shape)]
    seen = [view(np.broadcast_to(line, shape)) for line in lines]
    return [i[tuple(slice(None if step else 1) for step in i.strides)] for i in seen]
