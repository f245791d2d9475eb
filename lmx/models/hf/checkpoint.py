"""A folder of Hugging Face transformers, understood: which model it is and where."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.config.value import Config, explain_errors
from lmx.models.decoder import Decoder
from lmx.models.hf.family import Family, find_family
from lmx.models.hf.layout import TensorSlice, map_tensors
from lmx.models.hf.load import check_tensors, check_tied_copy, flatten_params, raise_if
from lmx.models.hf.quantized import DequantizedFolder
from lmx.models.hf.safetensors import SafetensorsFolder

CONFIG, GENERATION = "config.json", "generation_config.json"
QUANTIZATION = "quantization_config"  # the field that says how weights are stored
EMBEDDING, HEAD = (
    "embedding",
    "head.out.w",
)  # where a decoder has its embedding and its head


@dataclass(frozen=True)
class HFCheckpoint:
    """A model in a folder, of which nothing but descriptions is read yet.

    Attributes:
        given: its config.json, without the quantization that the weights undo.
        generation: its generation_config.json, empty if there is none.
    """

    path: Path
    family: Family
    fields: Mapping[str, Any]
    generation: Mapping[str, Any]
    weights: SafetensorsFolder

    @classmethod
    def open(cls, path: Path) -> "HFCheckpoint":
        """What is in the folder, if it is a family known here."""
        given = _read_json(path / CONFIG)
        quantized = isinstance(given.get(QUANTIZATION), dict)
        weights = (
            DequantizedFolder(path, given.pop(QUANTIZATION))
            if quantized
            else SafetensorsFolder(path)
        )
        has_generation = (path / GENERATION).is_file()
        generation = _read_json(path / GENERATION) if has_generation else {}
        where = str(path / CONFIG)
        return cls(path, find_family(given, where), given, generation, weights)

    def to_config(self, dtype: str, digest: str | None = None) -> Config:
        """The configuration, with parameters in that dtype."""
        more = {
            "Precision.params": dtype,
            "Pretrained.generation": self.generation,
            "Pretrained.source": digest,
        }
        return self.family.to_config(self.fields, str(self.path / CONFIG), more)

    def map_tensors(self, model: Decoder) -> list[TensorSlice]:
        """Where each parameter is, once every one has its tensor and none is left."""
        shapes = {
            name: leaf.shape for name, leaf in flatten_params(nnx.state(model)).items()
        }
        prefix, names = self.family.prefix, self.weights.tensors
        rows = self.family.tensor_maps
        if not any(name.startswith(prefix) for name in names):
            rows = [row._replace(hf=row.hf.removeprefix(prefix)) for row in rows]
        found = map_tensors(rows, shapes, model)
        used = {part.tensor for part in found}
        if HEAD not in shapes:
            tied = {row.param: row.hf for row in rows}
            if tied.get(HEAD) in names and tied[EMBEDDING] in used:
                check_tied_copy(self.weights, tied[HEAD], tied[EMBEDDING])
                used.add(tied[HEAD])
        depth = model.stack.depth
        rest = sorted(name for name in names.keys() - used)
        raise_if(
            f"{self.path}: {self.family.architecture} has no place for",
            [name for name in rest if not self.family.is_ignored(name, depth)],
        )
        check_tensors(self.weights, found, shapes)
        return found

    def infer_dtype(self, model: Decoder, found: list[TensorSlice]) -> str:
        """The narrowest that holds every parameter, but for those that have their own.

        `model` has been made with parameters in bfloat16, those aside.
        """
        own = {
            path
            for path, leaf in flatten_params(nnx.state(model)).items()
            if leaf.dtype != jnp.bfloat16
        }
        tensors = {part.tensor for part in found if part.path not in own}
        kinds = {self.weights.tensors[name].dtype for name in tensors}
        return str(reduce(jnp.promote_types, sorted(map(_float_dtype, kinds), key=str)))


def init_abstract(config: Config) -> Decoder:
    """The model without its numbers."""
    with explain_errors(config):
        make = config.build().model
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def _float_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which parameters of that one can be kept without loss."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"weights in {dtype} are quantized, and lmx computes with floats: fetch the"
            " model in a float dtype."
        )
    return np.dtype(jnp.bfloat16) if dtype.itemsize == 1 else dtype


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"there is no {file}: give the folder of a model, with its config.json."
        )
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is no JSON object.")
    return content
