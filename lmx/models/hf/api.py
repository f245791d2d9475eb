"""Folders of Hugging Face transformers as trained models and as runs, and back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from lmx.config.node import to_jsonable
from lmx.config.registry import ConfigError
from lmx.core import sharding
from lmx.core.console import byte_progress
from lmx.core.files import create_dir
from lmx.core.precision import Dtype
from lmx.core.sharding import RULES, Mesh, Rules
from lmx.data.tokenizer.hf_folder import load_hf_folder
from lmx.models.hf.checkpoint import CONFIG, GENERATION, HFCheckpoint, init_abstract
from lmx.models.hf.family import match_family
from lmx.models.hf.layout import group_by_tensor, map_tensors
from lmx.models.hf.load import flatten_params, load_params, raise_if
from lmx.models.hf.safetensors import SHARD_BYTES
from lmx.models.hf.save import save_params
from lmx.run.metadata import describe_environment
from lmx.run.run_dir import RunDir, write_initial_files
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.restore import TrainedModel


def load_hf(
    folder: str | Path,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Dtype | None = None,
) -> TrainedModel:
    """The model in a folder of Hugging Face transformers.

    On one device, or split over a mesh by `rules` (`RULES` if there are none): each
    process reads its devices' shares and nothing else. `dtype` is that of the
    parameters; None: the files' own.
    """
    return load_model(HFCheckpoint.open(Path(folder)), dtype, mesh, rules)


def load_model(
    source: HFCheckpoint,
    dtype: Dtype | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    digest: str | None = None,
) -> TrainedModel:
    """The model of a source; `source.weights.bytes_read` tells how many bytes it took."""
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
    like = _with_shardings(shapes, mesh, dict(RULES) | dict(rules or {}))
    weights = source.weights
    total = sum(map(weights.count_stored_bytes, group_by_tensor(found)))
    with byte_progress(f"reading {source.path.name}", total) as bar:
        params = load_params(
            weights, found, like, lambda: bar.update(weights.bytes_read - bar.n)
        )
    codec = load_hf_folder(source.path, {**source.fields, **source.generation})
    return TrainedModel(config, 0, graph, params, codec)


def _with_shardings(shapes: PyTree, mesh: Mesh | None, rules: Rules) -> PyTree:
    """The shapes, with their places on the mesh or on one device."""
    if mesh is not None:
        over = mesh.build(jax.devices(), rules)
        return sharding.with_shardings(shapes, sharding.shardings(shapes, over, rules))
    place = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )


def save_hf(
    trained: TrainedModel, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model as transformers would have saved it, in a folder of its own.

    `shard_bytes` is how many bytes a file of weights has at most. The folder is there whole
    or not at all.
    """
    if jax.process_count() > 1:
        raise ConfigError("save_hf needs all the parameters in one process.")
    family, fields = match_family(trained.config)
    params = flatten_params(trained.params)
    model = nnx.merge(trained.graph, jax.eval_shape(lambda: trained.params))
    shapes = {name: leaf.shape for name, leaf in params.items()}
    found = map_tensors(family.tensor_maps, shapes, model)
    raise_if("no tensor holds", sorted(shapes.keys() - {part.path for part in found}))
    own = trained.config.fields.get("family") == family.model_type
    told = {
        **(to_jsonable(trained.config["hf_fields"]) if own else {}),
        **fields,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": trained.config["model.precision.params"],
    }

    def fill(fresh: Path) -> None:
        write_json(fresh / CONFIG, told)
        if generation := trained.config.fields.get("generation"):
            write_json(fresh / GENERATION, to_jsonable(generation))
        total = sum(leaf.nbytes for leaf in params.values())
        with byte_progress(f"writing {Path(folder).name}", total) as bar:
            save_params(fresh, found, params, bar.update, shard_bytes)
        for name, content in (
            trained.tokenizer.hf_files if trained.tokenizer else {}
        ).items():
            (fresh / name).write_bytes(content)

    create_dir(Path(folder), fill, "is not empty: name another folder.")


def write_json(file: Path, content: Any) -> None:
    """Writes it as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def import_hf(folder: Path, run: Path, dtype: Dtype | None = None) -> TrainedModel:
    """Makes a run of the model in a folder, whole or not at all."""
    source = HFCheckpoint.open(folder)

    def fill(fresh: Path) -> None:
        made.append(trained := load_model(source, dtype, digest=_digest_files(source)))
        card = {
            "name": run.name,
            "run_id": trained.config.run_id(),
            "digest": trained.config.digest(),
            "folder": f"{folder.absolute()}",
            "parameters": trained.num_parameters,
            **describe_environment(),
        }
        write_initial_files(fresh, trained.config, card, trained.tokenizer)
        facts = {name: card[name] for name in ("run_id", "commit")}
        checkpoints = CheckpointManager(RunDir(fresh).checkpoint_folder, origin=facts)
        checkpoints.save(0, {"params": trained.params})
        checkpoints.wait()

    made: list[TrainedModel] = []
    create_dir(run, fill, "is not empty: name another folder.")
    return made[0]


def _digest_files(source: HFCheckpoint) -> str:
    """SHA-256 of a model's files, and of nothing about where they are."""
    content = hashlib.sha256()
    for file in (source.path / CONFIG, *source.weights.files):
        with file.open("rb") as opened:
            content.update(hashlib.file_digest(opened, "sha256").digest())
    return content.hexdigest()
