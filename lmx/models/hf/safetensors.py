"""Reads and writes folders of safetensors files.

A file is the length of its header in 8 bytes, the header in JSON, and the numbers
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lmx.config.coerce import coerce
from lmx.config.json_object import parse_object, refuse_repeated_names
from lmx.config.registry import ConfigError, require
from lmx.core.console import print_line
from lmx.models.hf.dequantize import BlockScaledTensor, View, dequantize

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD_BYTES = 5 * 10**9  # the largest file, as transformers writes
MAX_HEADER_BYTES = 10**8  # as the format's own library allows
MAX_DIMS = 32  # numpy has no more
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
ENTRY = {"dtype": str, "shape": tuple[int, ...], "data_offsets": tuple[int, int]}


class TensorInfo(NamedTuple):
    """The header entry of a tensor."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFolder:
    """The tensors of a folder: mapped arrays, of which only accessed parts are read.

    With a `quantization_config`, codes and scales appear as tensors in bfloat16.
    `bytes_read` counts the stored bytes that were read so far.
    """

    def __init__(self, path: Path, quantization: Mapping[str, Any] | None = None):
        self.files, self.bytes_read = _find_files(path), 0
        arrays: dict[str, np.ndarray] = {}
        for file in self.files:
            for name, array in _iter_arrays(file):
                require(
                    name not in arrays,
                    f"{path} has {name} twice, the second time in {file.name}: remove"
                    " the wrong file.",
                )
                arrays[name] = array
        self.tensors: dict[str, np.ndarray | BlockScaledTensor] = {**arrays}
        if quantization is not None:
            self.tensors = dequantize(arrays, quantization, path)

    def view(self, name: str) -> np.ndarray:
        """The tensor: mapped, or dequantized."""
        tensor = self.tensors[name]
        if isinstance(tensor, np.ndarray):
            return tensor
        out = np.empty(tensor.shape, tensor.dtype)
        self.read_into(out, name, lambda full: full)
        return out

    def read_into(self, out: np.ndarray, name: str, view: View) -> None:
        """Copies the part of a tensor that `view` selects to `out`."""
        tensor = self.tensors[name]
        if isinstance(tensor, np.ndarray):
            out[...] = part = view(tensor)
            self.bytes_read += part.nbytes
        else:
            self.bytes_read += tensor.read_into(out, view)


def _find_files(path: Path) -> list[Path]:
    """The files of weights, which all exist."""
    require(path.is_dir(), f"{path} is not a folder: give one with a config.json.")
    files = sorted(path.glob("*.safetensors"))
    index = path / INDEX
    kinds = {"weight_map": Mapping[str, str]}
    content = index.read_bytes() if index.is_file() else b'{"weight_map": {}}'
    listed = parse_object(content, index, kinds, refuse_repeated_names)["weight_map"]
    if path / SINGLE in files:
        if set(listed.values()) - {SINGLE}:
            _check_single(path, listed.keys())
        return [path / SINGLE]
    if index.is_file():
        found = {file.name for file in path.iterdir() if file.is_file()}
        missing = sorted({*listed.values()} - found)
        require(
            not missing,
            f"{path} lacks {', '.join(map(repr, missing))}, which its {INDEX} names:"
            " fetch the missing files.",
        )
        return [path / name for name in sorted({*listed.values()})]
    require(
        len(files) <= 1,
        f"{path} has {len(files)} files of weights and no {INDEX}, which lists them"
        " of the model: fetch it too.",
    )
    pickles = sorted(file.name for each in PICKLES for file in path.glob(each))
    require(
        files or not pickles,
        f"{path} has weights only in {', '.join(pickles)}, and reading a pickle runs"
        " whatever code is in it: fetch the model as safetensors, or convert it where"
        " you trust it (transformers: save_pretrained).",
    )
    require(
        files,
        f"{path} has no *.safetensors: give the folder of a model.",
    )
    return files


def _check_single(path: Path, listed: Set[str]) -> None:
    """Refuses a single file with other tensors than the index, which is not used."""
    different = sorted(listed ^ {name for name, _ in _iter_arrays(path / SINGLE)})
    require(
        not different,
        f"{path} has {SINGLE} and an {INDEX} of other tensors ({len(different)} differ:"
        f" {', '.join(different[:8])}): remove the one that is not of this model.",
    )
    print_line(f"{path}: lmx reads {SINGLE} and not its {INDEX}, as transformers does.")


def _iter_arrays(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a file, which is mapped and not read."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        require(
            size >= 8 and length <= min(size - 8, MAX_HEADER_BYTES),
            f"{file} is not a safetensors file, or is cut short.",
        )
        header = parse_object(
            stream.read(length), f"the header of {file}", hook=refuse_repeated_names
        )
    content = np.asarray(np.memmap(file, np.uint8, "r"))[8 + length :]
    header.pop("__metadata__", None)
    entries = [_parse_entry(file, *item) for item in header.items()]
    end = 0
    for tensor, start, stop in sorted(entries, key=lambda entry: entry[1:]):
        require(
            start == end and stop - start == tensor.bytes,
            f"{file}: {tensor.name} has {tensor.bytes} bytes and offsets {start} to"
            f" {stop}, after {end} bytes of other tensors: each byte must belong to one"
            " tensor. The file is damaged, fetch it again.",
        )
        end = stop
    require(
        end == len(content),
        f"{file}: the tensors have {end} bytes of {len(content)}: each byte must belong"
        " to one tensor. The file is cut short or damaged, fetch it again.",
    )
    for tensor, start, stop in entries:
        array = content[start:stop].view(tensor.dtype)
        yield tensor.name, array.reshape(tensor.shape)


def _parse_entry(file: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """A tensor, and the offsets of its bytes."""
    try:
        code, shape, (start, stop) = (coerce(entry[n], t) for n, t in ENTRY.items())
        dtype, sizes = DTYPES[code], [max(dim, 1) for dim in shape]
        is_valid = len(shape) <= MAX_DIMS and min(shape, default=0) >= 0
        is_valid = is_valid and math.prod(sizes) * dtype.itemsize < 2**63
        require(is_valid, "numpy has no array of this shape")
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{file}: the header has {name} = {entry!r:.200}: it must have a dtype"
            f" ({', '.join(DTYPES)}), a shape and data_offsets. The file is damaged or"
            " has a newer format: fetch it again, or convert it."
        ) from None
    return TensorInfo(name, dtype, shape), start, stop


def write_tensors(
    folder: Path,
    tensors: Sequence[TensorInfo],
    value: Callable[[TensorInfo], np.ndarray],
    limit: int = SHARD_BYTES,
) -> None:
    """Writes tensors, one in memory at a time, in files of up to `limit` bytes."""
    shards: list[list[TensorInfo]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.bytes
    if len(shards) == 1:
        return _write_file(folder / SINGLE, tensors, value)
    files = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files |= {tensor.name: name for tensor in shard}
        _write_file(folder / name, shard, value)
    metadata = {"total_size": sum(tensor.bytes for tensor in tensors)}
    index = {"metadata": metadata, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(
    file: Path,
    tensors: Sequence[TensorInfo],
    value: Callable[[TensorInfo], np.ndarray],
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # for transformers
    start = 0
    for name, dtype, shape in tensors:
        stop = start + TensorInfo(name, dtype, shape).bytes
        offsets = {"data_offsets": (start, stop)}
        header[name] = {"dtype": CODES[dtype], "shape": shape, **offsets}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the numbers
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(value(tensor))
            assert (array.dtype, array.shape) == tensor[1:], tensor
            stream.write(array.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
