"""Loads models from folders of Hugging Face transformers, and saves them there."""

import json
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from lmx.config.json_object import parse_object
from lmx.config.registry import require
from lmx.config.value import Config, explain_errors, to_jsonable
from lmx.core import sharding
from lmx.core.console import byte_progress
from lmx.core.files import create_dir
from lmx.core.precision import Dtype
from lmx.core.sharding import RULES, Mesh, Rules
from lmx.data.tokenizer.pretrained import load_hf_folder
from lmx.models.decoder import Decoder
from lmx.models.hf.attention_fields import MAX_LENGTH
from lmx.models.hf.family import find_family, match_family
from lmx.models.hf.safetensors import SHARD_BYTES, SafetensorsFolder
from lmx.models.hf.weights import (
    TensorSlice,
    check_tensors,
    check_tied_copy,
    group_by_tensor,
    load_params,
    map_tensors,
    raise_if,
    save_params,
)
from lmx.models.params import flatten_params
from lmx.models.trained_model import TrainedModel

CONFIG, GENERATION = "config.json", "generation_config.json"
QUANTIZATION = "quantization_config"  # the field that says how weights are stored
EMBEDDING, HEAD = "embedding", "head.out.w"  # parameters of a decoder


class HFCheckpoint:
    """A model in a folder, of which only headers and JSON files are read.

    Attributes:
        fields: its config.json, without the quantization that `weights` undoes.
        generation: its generation_config.json, empty if there is none.
    """

    def __init__(self, path: Path):
        """Raises ConfigError if lmx does not support the family."""
        self.path, self.fields = path, _read_json(path / CONFIG)
        is_quantized = isinstance(self.fields.get(QUANTIZATION), dict)
        quantization = self.fields.pop(QUANTIZATION) if is_quantized else None
        self.weights = SafetensorsFolder(path, quantization)
        exists = (path / GENERATION).is_file()
        self.generation = _read_json(path / GENERATION) if exists else {}
        self.family = find_family(self.fields, str(path / CONFIG))

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
        slices = map_tensors(rows, shapes, model)
        used = {part.tensor for part in slices}
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
        check_tensors(self.weights, slices, shapes)
        return slices

    def infer_dtype(self, model: Decoder, slices: list[TensorSlice]) -> str:
        """The narrowest dtype that holds every parameter without a dtype of its own.

        `model` is built in bfloat16, except for those with their own.
        """
        params = flatten_params(nnx.state(model))
        own = {path for path, leaf in params.items() if leaf.dtype != jnp.bfloat16}
        tensors = {part.tensor for part in slices if part.path not in own}
        floats = []
        for dtype in {self.weights.tensors[name].dtype for name in tensors}:
            require(
                jnp.issubdtype(dtype, jnp.floating),
                f"weights in {dtype} are quantized, and lmx computes with floats: fetch"
                " the model in a float dtype.",
            )
            floats.append(np.dtype(jnp.bfloat16) if dtype.itemsize == 1 else dtype)
        return str(reduce(jnp.promote_types, sorted(floats, key=str)))


def init_abstract(config: Config) -> Decoder:
    """The model with shapes in place of arrays."""
    with explain_errors(config):
        make = config.build().model
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def _read_json(file: Path) -> dict[str, Any]:
    require(
        file.is_file(),
        f"{file} does not exist: give the folder of a model with its config.json.",
    )
    return parse_object(file.read_bytes(), file)


def load_hf(
    folder: str | Path,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Dtype | None = None,
) -> TrainedModel:
    """The model in a folder of Hugging Face transformers, on one device or a mesh.

    Each process reads only the shards of its devices. `rules` override `RULES`. `dtype`
    is that of the parameters; None: that of the files.
    """
    return load_model(HFCheckpoint(Path(folder)), dtype, mesh, rules)


def load_model(
    source: HFCheckpoint,
    dtype: Dtype | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    digest: str | None = None,
) -> TrainedModel:
    """The model of a checkpoint; `source.weights.bytes_read` counts what was read.

    `digest` identifies the files in the config of the result.
    """
    model = init_abstract(source.to_config("bfloat16"))
    slices = source.map_tensors(model)
    config = source.to_config(dtype or source.infer_dtype(model, slices), digest)
    wanted = config["model.precision.params"]
    require(
        jax.dtypes.canonicalize_dtype(wanted) == wanted,
        f"the weights of {source.path} are {wanted} and jax is set to 32 bits: ask"
        " for dtype float32, or set jax_enable_x64.",
    )
    graph, shapes = nnx.split(init_abstract(config))
    abstract = _with_shardings(shapes, mesh, dict(RULES) | dict(rules or {}))
    weights = source.weights
    total = sum(weights.tensors[name].nbytes for name in group_by_tensor(slices))
    with byte_progress(f"reading {source.path.name}", total) as bar:
        params = load_params(
            weights, slices, abstract, lambda: bar.update(weights.bytes_read - bar.n)
        )
    tokenizer = load_hf_folder(source.path, {**source.fields, **source.generation})
    return TrainedModel(config, 0, graph, params, tokenizer)


def _with_shardings(shapes: PyTree, mesh: Mesh | None, rules: Rules) -> PyTree:
    """The shapes, sharded over the mesh, or on one device without one."""
    if mesh is None:
        local = SingleDeviceSharding(jax.local_devices()[0])
        return sharding.with_shardings(shapes, local)
    devices = mesh.build(jax.devices(), rules)
    return sharding.with_shardings(shapes, sharding.shardings(shapes, devices, rules))


def save_hf(
    trained: TrainedModel, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model to a new folder, in the format of transformers.

    `shard_bytes` is the maximum size of a file. If it fails, no folder is left.
    """
    require(
        jax.process_count() <= 1, "save_hf needs all the parameters in one process."
    )
    origin = {**trained.config.fields, **trained.origin}
    family, fields = match_family(trained.config, origin.get("family"))
    params = flatten_params(trained.params)
    model = nnx.merge(trained.graph, jax.eval_shape(lambda: trained.params))
    shapes = {name: leaf.shape for name, leaf in params.items()}
    slices = map_tensors(family.tensor_maps, shapes, model)
    raise_if("no tensor holds", sorted(shapes.keys() - {part.path for part in slices}))
    imported = origin.get("family") == family.model_type
    own = to_jsonable(origin["hf_fields"]) if imported else {}
    if trained.training_length and not model.max_length:  # of learned positions
        longest = max(trained.training_length, own.get(MAX_LENGTH) or 0)
        own = {**own, MAX_LENGTH: longest}
    config = {
        **own,
        **fields,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": trained.config["model.precision.params"],
    }
    files = trained.tokenizer.files if trained.tokenizer else {}
    with create_dir(Path(folder), "is not empty: name another folder.") as new:
        write_json(new / CONFIG, config)
        if generation := origin.get("generation"):
            write_json(new / GENERATION, to_jsonable(generation))
        total = sum(leaf.nbytes for leaf in params.values())
        with byte_progress(f"writing {Path(folder).name}", total) as bar:
            save_params(new, slices, params, bar.update, shard_bytes)
        for name, content in files.items():
            (new / name).write_bytes(content)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON formatted as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
