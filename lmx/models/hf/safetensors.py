"""Safetensors on disk: what a folder of them holds, and how one is written.

A file is the length of its header in 8 bytes, the header in JSON (dtype, shape and
offsets of every tensor), and the numbers. See
https://github.com/huggingface/safetensors#format.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lmx.config.registry import ConfigError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD_BYTES = 5 * 10**9  # bytes of a file at most, as transformers writes
MAX_HEADER_BYTES = 10**8  # bytes, as the format's own library allows
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
View = Callable[[np.ndarray], np.ndarray]  # which shows a part, and copies nothing


class TensorInfo(NamedTuple):
    """A tensor as its header describes it."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFolder:
    """The tensors of a folder, none of them read yet.

    Attributes:
        tensors: what there is, by name.
        read: bytes of tensors that this process has asked for so far.
    """

    def __init__(self, path: Path):
        self.tensors: dict[str, TensorInfo] = {}
        self.bytes_read = 0
        self.files = _find_files(path)
        self._bytes: dict[str, np.ndarray] = {}
        for file in self.files:
            for tensor, content in _iter_tensors(file):
                if tensor.name in self.tensors:
                    raise ConfigError(
                        f"{path} has {tensor.name} twice, the second time in"
                        f" {file.name}: take away the file that is not wanted."
                    )
                self.tensors[tensor.name] = tensor
                self._bytes[tensor.name] = content

    def view(self, name: str) -> np.ndarray:
        """The tensor on disk: only what is taken of it will be read."""
        tensor = self.tensors[name]
        return self._bytes[name].view(tensor.dtype).reshape(tensor.shape)

    def count_stored_bytes(self, name: str) -> int:
        """How many bytes of files it takes."""
        return self.tensors[name].bytes

    def read_into(self, out: np.ndarray, name: str, view: View) -> None:
        """Puts what the view shows of a tensor into `out`, and counts it as read."""
        part = view(self.view(name))
        self.bytes_read += part.nbytes
        out[...] = part


def _find_files(path: Path) -> list[Path]:
    """The files of weights, all of which are there."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder: give one with a config.json.")
    if (path / INDEX).is_file():
        names = set(json.loads((path / INDEX).read_text())["weight_map"].values())
        gone = sorted(name for name in names if not (path / name).is_file())
        if gone:
            raise ConfigError(
                f"{path} lacks {', '.join(gone)}, which its {INDEX} names: fetch what"
                " is missing."
            )
        return [path / name for name in sorted(names)]
    found = sorted(path.glob("*.safetensors"))
    if path / SINGLE in found:
        return [path / SINGLE]
    if len(found) == 1:
        return found
    if found:
        raise ConfigError(
            f"{path} has {len(found)} files of weights and no {INDEX} to say which"
            " belong together: fetch it too."
        )
    pickles = [file.name for pattern in PICKLES for file in path.glob(pattern)]
    if pickles:
        raise ConfigError(
            f"{path} has weights only in {sorted(pickles)[0]}, a pickle, and reading a"
            " pickle runs whatever code is in it: fetch the model as safetensors, or"
            " convert it where you trust it (transformers: save_pretrained)."
        )
    raise ConfigError(f"{path} has no *.safetensors: give the folder of a model.")


def _iter_tensors(file: Path) -> Iterator[tuple[TensorInfo, np.ndarray]]:
    """Every tensor of a file, with its bytes, which are mapped and not read."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ConfigError(f"{file} is no safetensors file, or cut short.")
        try:
            header: dict[str, Any] = json.loads(opened.read(length))
        except ValueError:
            raise ConfigError(
                f"{file} is no safetensors file: its header is no JSON."
            ) from None
    content = np.asarray(np.memmap(file, np.uint8, "r"))[8 + length :]
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ConfigError(f"{file}: {name} is in {entry['dtype']}, unknown here.")
        tensor = TensorInfo(name, DTYPES[entry["dtype"]], tuple(entry["shape"]))
        begin, end = entry["data_offsets"]
        if end - begin != tensor.bytes or not 0 <= begin <= end <= len(content):
            raise ConfigError(
                f"{file}: {name} should fill bytes {begin} to {end} of"
                f" {len(content)} with {tensor.bytes}: the file is cut short or"
                " damaged, fetch it again."
            )
        yield tensor, content[begin:end]


def write_tensors(
    folder: Path,
    tensors: Sequence[TensorInfo],
    value: Callable[[TensorInfo], np.ndarray],
    limit: int = SHARD_BYTES,
) -> None:
    """Writes each tensor as `value` gives it, one at a time, in files up to `limit`."""
    shards = _split_shards(tensors, limit)
    names = [SINGLE]
    if len(shards) > 1:
        count = f"{len(shards):05d}"
        names = [
            f"model-{n:05d}-of-{count}.safetensors" for n in range(1, len(shards) + 1)
        ]
        index = {
            "metadata": {"total_size": sum(tensor.bytes for tensor in tensors)},
            "weight_map": {
                tensor.name: name
                for name, shard in zip(names, shards, strict=True)
                for tensor in shard
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, value)


def _split_shards(tensors: Sequence[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    """Tensors in their order, as many to a file as fit."""
    shards: list[list[TensorInfo]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def _write_file(
    file: Path, tensors: Sequence[TensorInfo], value: Callable[[TensorInfo], np.ndarray]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks
    begin = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, begin + tensor.bytes),
        }
        begin += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin aligned
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(value(tensor))
            assert (array.dtype, array.shape) == tensor[1:], tensor
            opened.write(array.reshape(-1).view(np.uint8).data)
        opened.flush()
        os.fsync(opened.fileno())
