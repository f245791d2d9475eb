"""A folder of Hugging Face transformers: its family, its configuration, its weights."""

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
from lmx.models.hf.dequantize import DequantizedFolder
from lmx.models.hf.family import Family, find_family
from lmx.models.hf.layout import TensorSlice, map_tensors
from lmx.models.hf.safetensors import SafetensorsFolder
from lmx.models.hf.weights import (
    check_tensors,
    check_tied_copy,
    flatten_params,
    raise_if,
)

CONFIG, GENERATION = "config.json", "generation_config.json"
QUANTIZATION = "quantization_config"  # the field that says how weights are stored
EMBEDDING, HEAD = "embedding", "head.out.w"  # parameters of a decoder


@dataclass(frozen=True)
class HFCheckpoint:
    """A model in a folder, of which only headers and JSON files are read.

    Attributes:
        fields: its config.json, without the quantization that `weights` undoes.
        generation: its generation_config.json, empty if there is none.
    """

    path: Path
    family: Family
    fields: Mapping[str, Any]
    generation: Mapping[str, Any]
    weights: SafetensorsFolder

    @classmethod
    def open(cls, path: Path) -> "HFCheckpoint":
        """The folder, if lmx supports the family."""
        fields = _read_json(path / CONFIG)
        if isinstance(fields.get(QUANTIZATION), dict):
            weights = DequantizedFolder(path, fields.pop(QUANTIZATION))
        else:
            weights = SafetensorsFolder(path)
        exists = (path / GENERATION).is_file()
        generation = _read_json(path / GENERATION) if exists else {}
        family = find_family(fields, str(path / CONFIG))
        return cls(path, family, fields, generation, weights)

    def to_config(self, dtype: str, digest: str | None = None) -> Config:
        """The configuration, with parameters in that dtype."""
        extra = {
            "Precision.params": dtype,
            "Pretrained.generation": self.generation,
            "Pretrained.source": digest,
        }
        return self.family.to_config(self.fields, str(self.path / CONFIG), extra)

    def map_tensors(self, model: Decoder) -> list[TensorSlice]:
        """The tensors of all parameters. Refuses missing and unused tensors."""
        params = flatten_params(nnx.state(model))
        shapes = {path: leaf.shape for path, leaf in params.items()}
        prefix, names = self.family.prefix, self.weights.tensors.keys()
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
        raise_if(
            f"{self.path}: {self.family.architecture} has no parameter for",
            [n for n in sorted(names - used) if not self.family.is_ignored(n, depth)],
        )
        check_tensors(self.weights, found, shapes)
        return found

    def infer_dtype(self, model: Decoder, found: list[TensorSlice]) -> str:
        """The narrowest dtype that holds every parameter without a dtype of its own.

        `model` is built with parameters in bfloat16, except for those.
        """
        params = flatten_params(nnx.state(model))
        own = {path for path, leaf in params.items() if leaf.dtype != jnp.bfloat16}
        tensors = {part.tensor for part in found if part.path not in own}
        dtypes = {self.weights.tensors[name].dtype for name in tensors}
        floats = sorted(map(_float_dtype, dtypes), key=str)
        return str(reduce(jnp.promote_types, floats))


def init_abstract(config: Config) -> Decoder:
    """The model with shapes in place of arrays."""
    with explain_errors(config):
        make = config.build().model
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def _float_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype that holds parameters of `dtype` without loss."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"weights in {dtype} are quantized, and lmx computes with floats: fetch the"
            " model in a float dtype."
        )
    return np.dtype(jnp.bfloat16) if dtype.itemsize == 1 else dtype


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"{file} does not exist: give the folder of a model with its config.json."
        )
    try:
        return dict(json.loads(file.read_text()).items())
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{file} is not a JSON object: {error}") from None
