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

from lmx.config.names import ConfigError
from lmx.config.tree import Config, explained
from lmx.models.decoder import Decoder
from lmx.models.hf.family import Family, family_of
from lmx.models.hf.load import check, check_copy, named, refuse
from lmx.models.hf.scaled import Scaled
from lmx.models.hf.table import Part, parts
from lmx.models.hf.tensors import Folder

CONFIG, GENERATION = "config.json", "generation_config.json"
QUANTIZATION = "quantization_config"  # the field that says how weights are stored
TABLE, HEAD = "table", "head.out.w"  # where a decoder has its embedding and its head


@dataclass(frozen=True)
class Source:
    """A model in a folder, of which nothing but descriptions is read yet.

    Attributes:
        given: its config.json, without the quantization that the weights undo.
        generation: its generation_config.json, empty if there is none.
    """

    path: Path
    family: Family
    given: Mapping[str, Any]
    generation: Mapping[str, Any]
    weights: Folder

    @classmethod
    def of(cls, path: Path) -> "Source":
        """What is in the folder, if it is a family known here."""
        given = _json(path / CONFIG)
        quantized = isinstance(given.get(QUANTIZATION), dict)
        weights = Scaled(path, given.pop(QUANTIZATION)) if quantized else Folder(path)
        has_generation = (path / GENERATION).is_file()
        generation = _json(path / GENERATION) if has_generation else {}
        where = str(path / CONFIG)
        return cls(path, family_of(given, where), given, generation, weights)

    def config(self, dtype: str, digest: str | None = None) -> Config:
        """The configuration, with parameters in that dtype."""
        more = {
            "Precision.params": dtype,
            "Pretrained.generation": self.generation,
            "Pretrained.source": digest,
        }
        return self.family.compose(self.given, str(self.path / CONFIG), more)

    def parts(self, model: Decoder) -> list[Part]:
        """Where each parameter is, once every one has its tensor and none is left."""
        shapes = {name: leaf.shape for name, leaf in named(nnx.state(model)).items()}
        prefix, names = self.family.prefix, self.weights.tensors
        rows = self.family.weights
        if not any(name.startswith(prefix) for name in names):
            rows = [row._replace(file=row.file.removeprefix(prefix)) for row in rows]
        found = parts(rows, shapes, model)
        used = {part.tensor for part in found}
        if HEAD not in shapes:
            tied = {row.into: row.file for row in rows}
            if tied.get(HEAD) in names and tied[TABLE] in used:
                check_copy(self.weights, tied[HEAD], tied[TABLE])
                used.add(tied[HEAD])
        depth = model.stack.depth
        rest = sorted(name for name in names.keys() - used)
        refuse(
            f"{self.path}: {self.family.architecture} has no place for",
            [name for name in rest if not self.family.ignores(name, depth)],
        )
        check(self.weights, found, shapes)
        return found

    def dtype(self, model: Decoder, found: list[Part]) -> str:
        """The narrowest that holds every parameter, but for those that have their own.

        `model` has been made with parameters in bfloat16, those aside.
        """
        own = {
            path
            for path, leaf in named(nnx.state(model)).items()
            if leaf.dtype != jnp.bfloat16
        }
        tensors = {part.tensor for part in found if part.path not in own}
        kinds = {self.weights.tensors[name].dtype for name in tensors}
        return str(reduce(jnp.promote_types, sorted(map(_float, kinds), key=str)))


def shaped(config: Config) -> Decoder:
    """The model without its numbers."""
    with explained(config):
        make = config.build().model
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def _float(dtype: np.dtype) -> np.dtype:
    """The dtype in which parameters of that one can be kept without loss."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"weights in {dtype} are quantized, and lmx computes with floats: fetch the"
            " model in a float dtype."
        )
    return np.dtype(jnp.bfloat16) if dtype.itemsize == 1 else dtype


def _json(file: Path) -> dict[str, Any]:
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
