"""Folders of Hugging Face transformers as trained models and as runs, and back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from lmx.config.names import ConfigError
from lmx.config.node import plain
from lmx.core import sharding
from lmx.core.precision import Dtype
from lmx.core.sharding import RULES, Mesh, Rules
from lmx.data.cache import new_folder
from lmx.data.progress import bytes_bar
from lmx.data.tokenizers.folder import open_folder
from lmx.models.hf.family import express
from lmx.models.hf.load import load, named, refuse
from lmx.models.hf.save import save
from lmx.models.hf.source import CONFIG, GENERATION, Source, shaped
from lmx.models.hf.table import by_tensor, parts
from lmx.models.hf.tensors import SHARD
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.record.card import ground
from lmx.train.record.directory import Directory, describe
from lmx.train.record.restore import Trained


def load_hf(
    folder: str | Path,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Dtype | None = None,
) -> Trained:
    """The model in a folder of Hugging Face transformers.

    On one device, or split over a mesh by `rules` (`RULES` if there are none): each
    process reads its devices' shares and nothing else. `dtype` is that of the
    parameters; None: the files' own.
    """
    return loaded(Source.of(Path(folder)), dtype, mesh, rules)


def loaded(
    source: Source,
    dtype: Dtype | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    digest: str | None = None,
) -> Trained:
    """The model of a source; `source.weights.read` tells how many bytes it took."""
    model = shaped(source.config("bfloat16"))
    found = source.parts(model)
    config = source.config(dtype or source.dtype(model, found), digest)
    wanted = config["model.precision.params"]
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ConfigError(
            f"the weights of {source.path} are {wanted} and jax is set to 32 bits: ask"
            " for dtype float32, or set jax_enable_x64."
        )
    graph, shapes = nnx.split(shaped(config))
    like = _placed(shapes, mesh, dict(RULES) | dict(rules or {}))
    weights = source.weights
    total = sum(map(weights.size, by_tensor(found)))
    with bytes_bar(f"reading {source.path.name}", total) as bar:
        params = load(weights, found, like, lambda: bar.update(weights.read - bar.n))
    codec = open_folder(source.path, {**source.given, **source.generation})
    return Trained(config, 0, graph, params, codec)


def _placed(shapes: PyTree, mesh: Mesh | None, rules: Rules) -> PyTree:
    """The shapes, with their places on the mesh or on one device."""
    if mesh is not None:
        over = mesh.over(jax.devices(), rules)
        return sharding.placed(shapes, sharding.shardings(shapes, over, rules))
    place = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )


def save_hf(trained: Trained, folder: str | Path, shard: int = SHARD) -> None:
    """Writes the model as transformers would have saved it, in a folder of its own.

    `shard` is how many bytes a file of weights has at most. The folder is there whole
    or not at all.
    """
    if jax.process_count() > 1:
        raise ConfigError("save_hf needs all the parameters in one process.")
    family, fields = express(trained.config)
    params = named(trained.params)
    model = nnx.merge(trained.graph, jax.eval_shape(lambda: trained.params))
    shapes = {name: leaf.shape for name, leaf in params.items()}
    found = parts(family.weights, shapes, model)
    refuse("no tensor holds", sorted(shapes.keys() - {part.path for part in found}))
    own = trained.config.fields.get("family") == family.model_type
    told = {
        **(plain(trained.config["facts"]) if own else {}),
        **fields,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": trained.config["model.precision.params"],
    }

    def fill(fresh: Path) -> None:
        write_json(fresh / CONFIG, told)
        if generation := trained.config.fields.get("generation"):
            write_json(fresh / GENERATION, plain(generation))
        total = sum(leaf.nbytes for leaf in params.values())
        with bytes_bar(f"writing {Path(folder).name}", total) as bar:
            save(fresh, found, params, bar.update, shard)
        for name, content in (trained.codec.carried if trained.codec else {}).items():
            (fresh / name).write_bytes(content)

    new_folder(Path(folder), fill, "is not empty: name another folder.")


def write_json(file: Path, content: Any) -> None:
    """Writes it as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def import_hf(folder: Path, run: Path, dtype: Dtype | None = None) -> Trained:
    """Makes a run of the model in a folder, whole or not at all."""
    source = Source.of(folder)

    def fill(fresh: Path) -> None:
        made.append(trained := loaded(source, dtype, digest=_digest(source)))
        card = {
            "name": run.name,
            "run_id": trained.config.run_id(),
            "digest": trained.config.digest(),
            "folder": f"{folder.absolute()}",
            "parameters": trained.parameters,
            **ground(),
        }
        describe(fresh, trained.config, card, trained.codec)
        facts = {name: card[name] for name in ("run_id", "commit")}
        checkpoints = Checkpoints(Directory(fresh).checkpoints, origin=facts)
        checkpoints.save(0, {"params": trained.params})
        checkpoints.wait()

    made: list[Trained] = []
    new_folder(run, fill, "is not empty: name another folder.")
    return made[0]


def _digest(source: Source) -> str:
    """SHA-256 of a model's files, and of nothing about where they are."""
    content = hashlib.sha256()
    for file in (source.path / CONFIG, *source.weights.files):
        with file.open("rb") as opened:
            content.update(hashlib.file_digest(opened, "sha256").digest())
    return content.hexdigest()
