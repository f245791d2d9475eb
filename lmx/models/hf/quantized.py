"""Weights published in floats that share scales, as the tensors that they stand for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lmx.config.registry import ConfigError, suggest
from lmx.models.hf.safetensors import SafetensorsFolder, TensorInfo, View

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3, E2M1 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float4_e2m1fn)
MX_BLOCK = 32  # numbers that share a scale, in 16 bytes
SLAB = 2**20  # numbers made at a time, few enough to stay in a cache
# What may be said of the quantization; in which dtype each tensor is, the files say.
KNOWN_FIELDS = frozenset(
    "quant_method fmt weight_block_size scale_fmt expert_dtype activation_scheme"
    " dequantize modules_to_not_convert modules_to_convert ignored_layers".split()
)
Indices = Sequence[np.ndarray]  # along each dimension, to be broadcast to one shape


@dataclass(frozen=True)
class BlockScaledTensor:
    """A tensor as the codes of small floats, and a scale for each block of them.

    Attributes:
        codes: bytes, of one float each or of two along the last dimension but one, the
            lower bits first.
        floats: what they are codes of.
        scales: one for each block, in any float dtype.
        block: its size along each dimension; the last one may hang over.
    """

    codes: np.ndarray
    dtype: np.dtype
    scales: np.ndarray
    block_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        *lead, rows, columns = self.codes.shape
        return (*lead, rows * self._codes_per_byte, columns)

    def dequantize(self, at: Indices) -> np.ndarray:
        """The float32 products there."""
        bits = 8 // self._codes_per_byte
        floats = np.arange(2**bits, dtype=np.uint8).view(self.dtype)
        turn = (at[-2] % self._codes_per_byte * bits).astype(np.uint8)
        codes = self.codes[self._byte_index(at)] >> turn & (2**bits - 1)
        scales = self.scales[self._block_index(at)].astype(np.float32)
        return floats.astype(np.float32)[codes] * scales

    def count_bytes(self, at: Indices) -> int:
        """How many bytes those are made of."""
        parts = (self.codes, self._byte_index(at)), (self.scales, self._block_index(at))
        return sum(
            part.itemsize * math.prod(len(np.unique(index)) for index in places)
            for part, places in parts
        )

    @property
    def _codes_per_byte(self) -> int:
        """How many codes a byte has."""
        return 8 // ml_dtypes.finfo(self.dtype).bits

    def _byte_index(self, at: Indices) -> tuple[np.ndarray, ...]:
        return (*at[:-2], at[-2] // self._codes_per_byte, at[-1])

    def _block_index(self, at: Indices) -> tuple[np.ndarray, ...]:
        return tuple(i // size for i, size in zip(at, self.block_shape, strict=True))


QuantizedTensors = Iterator[
    tuple[str, tuple[str, str], BlockScaledTensor]
]  # a tensor, its parts, and both


def find_fp8(folder: SafetensorsFolder, how: Mapping[str, Any]) -> QuantizedTensors:
    """E4M3 scaled in rectangles of the last two dimensions, as in DeepSeek-V3.

    DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2.
    """
    size = how.get("weight_block_size", [128, 128])
    sizes = size if isinstance(size, list) else []
    if [isinstance(n, int) and n > 0 for n in sizes] != [True, True]:
        raise ConfigError(
            f"quantization_config.weight_block_size = {size!r} must be the rows and"
            " columns that share a scale, as in [128, 128]."
        )
    for name, (_, dtype, shape) in folder.tensors.items():
        if dtype == E4M3 and len(shape) > 1:
            block = (*(1 for _ in shape[2:]), *sizes)
            grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
            parts = name, f"{name}_scale_inv"
            scales = _find_scales(folder, parts, grid, jnp.floating)
            codes = folder.view(name).view(np.uint8)
            yield name, parts, BlockScaledTensor(codes, E4M3, scales, block)


def find_mxfp4(folder: SafetensorsFolder, how: Mapping[str, Any]) -> QuantizedTensors:
    """E2M1 scaled along the last dimension but one, as the experts of gpt-oss.

    In the files it is the last. Open Compute Project 2023, OCP Microscaling Formats
    (MX) Specification v1.0, section 5.
    """
    for name, (_, dtype, shape) in folder.tensors.items():
        tensor = name.removesuffix("_blocks")
        if tensor != name and dtype == np.uint8:
            if len(shape) != 4 or shape[3] != MX_BLOCK // 2:
                raise ConfigError(
                    f"{name} is {shape}: there must be four dimensions, and in the last"
                    f" the {MX_BLOCK // 2} bytes of a block."
                )
            parts = name, f"{tensor}_scales"
            codes = folder.view(name).reshape(*shape[:2], -1).swapaxes(1, 2)
            powers = _find_scales(folder, parts, shape[:3], np.uint8).swapaxes(1, 2)
            scales = powers.view(ml_dtypes.float8_e8m0fnu)
            yield (
                tensor,
                parts,
                BlockScaledTensor(codes, E2M1, scales, (1, MX_BLOCK, 1)),
            )


FORMATS = {"fp8": find_fp8, "mxfp4": find_mxfp4}


def _find_scales(
    folder: SafetensorsFolder,
    parts: tuple[str, str],
    shape: tuple[int, ...],
    kind: type,
) -> np.ndarray:
    """The second of the parts, as it is on disk."""
    codes, scales = parts
    if scales not in folder.tensors:
        raise ConfigError(f"the files lack {scales}, the scales of {codes}.")
    _, dtype, have = folder.tensors[scales]
    if have != shape or not jnp.issubdtype(dtype, kind):
        raise ConfigError(
            f"{scales} is {have} in {dtype}, and {codes} needs {shape} in"
            f" {kind.__name__}: config.json must be the one of these weights."
        )
    return folder.view(scales)


class DequantizedFolder(SafetensorsFolder):
    """A folder in which codes and their scales are one tensor, in bfloat16.

    `how` is the `quantization_config` of its config.json.
    """

    def __init__(self, path: Path, how: Mapping[str, Any]):
        super().__init__(path)
        method = f"{how.get('quant_method')}"
        if method not in FORMATS:
            raise ConfigError(
                f"{path}: quantization_config.quant_method = {method!r} is not known"
                f" here{suggest(method, FORMATS)}: save the model in bfloat16, with"
                " transformers (from_pretrained, dequantized, and save_pretrained)."
            )
        for name in sorted(how.keys() - KNOWN_FIELDS):
            raise ConfigError(
                f"{path}: quantization_config.{name} = {how[name]!r} is not known here:"
                " take it away if it does not change the numbers."
            )
        self._quantized: dict[str, BlockScaledTensor] = {}
        for name, parts, blocks in list(FORMATS[method](self, how)):
            for part in parts:
                del self.tensors[part]
            if name in self.tensors:
                raise ConfigError(
                    f"{path} has {name} twice, once as {parts[0]}: take away the one"
                    " that is not wanted."
                )
            self.tensors[name] = TensorInfo(name, BFLOAT16, blocks.shape)
            self._quantized[name] = blocks

    def view(self, name: str) -> np.ndarray:
        if name not in self._quantized:
            return super().view(name)
        whole = np.empty(self.tensors[name].shape, BFLOAT16)
        self.read_into(whole, name, lambda tensor: tensor)
        return whole

    def count_stored_bytes(self, name: str) -> int:
        if name not in self._quantized:
            return super().count_stored_bytes(name)
        return self._quantized[name].codes.nbytes + self._quantized[name].scales.nbytes

    def read_into(self, out: np.ndarray, name: str, view: View) -> None:
        if name not in self._quantized:
            return super().read_into(out, name, view)
        blocks = self._quantized[name]
        at = _trace_view(blocks.shape, view)
        self.bytes_read += blocks.count_bytes(at)
        rows = max(1, SLAB * len(out) // max(1, out.size))
        for row in range(0, len(out), rows):
            some = slice(row, row + rows)
            out[some] = blocks.dequantize([i[some] if len(i) > 1 else i for i in at])


def _trace_view(shape: tuple[int, ...], view: View) -> list[np.ndarray]:
    """Where in the tensor the numbers of a view stand, along each dimension.

    Each is only as large as it must be to broadcast.
    """
    lines = np.ogrid[tuple(slice(size) for size in shape)]
    seen = [view(np.broadcast_to(line, shape)) for line in lines]
    return [i[tuple(slice(None if step else 1) for step in i.strides)] for i in seen]
