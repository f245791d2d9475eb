"""Loads models from folders of Hugging Face transformers, and saves them there."""

import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from lmx.config.registry import ConfigError
from lmx.config.value import to_jsonable
from lmx.core import sharding
from lmx.core.console import byte_progress
from lmx.core.files import create_dir
from lmx.core.precision import Dtype
from lmx.core.sharding import RULES, Mesh, Rules
from lmx.data.tokenizer.pretrained import load_hf_folder
from lmx.models.hf.checkpoint import CONFIG, GENERATION, HFCheckpoint, init_abstract
from lmx.models.hf.family import match_family
from lmx.models.hf.layout import group_by_tensor, map_tensors
from lmx.models.hf.safetensors import SHARD_BYTES
from lmx.models.hf.weights import (
    flatten_params,
    load_params,
    raise_if,
    save_params,
)
from lmx.models.trained_model import TrainedModel


def load_hf(
    folder: str | Path,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Dtype | None = None,
) -> TrainedModel:
    """The model in a folder of Hugging Face transformers.

    On one device, or sharded over a mesh by `rules`, which override `RULES`: each
    process reads only the shards of its devices. `dtype` is that of the parameters;
    None: that of the files.
    """
    return load_model(HFCheckpoint.open(Path(folder)), dtype, mesh, rules)


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
    found = source.map_tensors(model)
    config = source.to_config(dtype or source.infer_dtype(model, found), digest)
    wanted = config["model.precision.params"]
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ConfigError(
            f"the weights of {source.path} are {wanted} and jax is set to 32 bits: ask"
            " for dtype float32, or set jax_enable_x64."
        )
    graph, shapes = nnx.split(init_abstract(config))
    abstract = _with_shardings(shapes, mesh, dict(RULES) | dict(rules or {}))
    weights = source.weights
    total = sum(map(weights.count_stored_bytes, group_by_tensor(found)))
    with byte_progress(f"reading {source.path.name}", total) as bar:
        params = load_params(
            weights, found, abstract, lambda: bar.update(weights.bytes_read - bar.n)
        )
    tokenizer = load_hf_folder(source.path, {**source.fields, **source.generation})
    return TrainedModel(config, 0, graph, params, tokenizer)


def _with_shardings(shapes: PyTree, mesh: Mesh | None, rules: Rules) -> PyTree:
    """The shapes, sharded over the mesh, or on one device without one."""
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        return sharding.with_shardings(shapes, device)
    devices = mesh.build(jax.devices(), rules)
    return sharding.with_shardings(shapes, sharding.shardings(shapes, devices, rules))


def save_hf(
    trained: TrainedModel, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model to a new folder, in the format of transformers.

    `shard_bytes` is the maximum size of a file of weights. If it fails, nothing is left
    of the folder.
    """
    if jax.process_count() > 1:
        raise ConfigError("save_hf needs all the parameters in one process.")
    family, fields = match_family(trained.config)
    params = flatten_params(trained.params)
    model = nnx.merge(trained.graph, jax.eval_shape(lambda: trained.params))
    shapes = {name: leaf.shape for name, leaf in params.items()}
    found = map_tensors(family.tensor_maps, shapes, model)
    raise_if("no tensor holds", sorted(shapes.keys() - {part.path for part in found}))
    imported = trained.config.fields.get("family") == family.model_type
    config = {
        **(to_jsonable(trained.config["hf_fields"]) if imported else {}),
        **fields,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": trained.config["model.precision.params"],
    }
    files = trained.tokenizer.files if trained.tokenizer else {}
    with create_dir(Path(folder), "is not empty: name another folder.") as new:
        write_json(new / CONFIG, config)
        if generation := trained.config.fields.get("generation"):
            write_json(new / GENERATION, to_jsonable(generation))
        total = sum(leaf.nbytes for leaf in params.values())
        with byte_progress(f"writing {Path(folder).name}", total) as bar:
            save_params(new, found, params, bar.update, shard_bytes)
        for name, content in files.items():
            (new / name).write_bytes(content)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON formatted as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
