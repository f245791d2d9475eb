"""Restores the trained model, or its weights alone, from the folder of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from lmx.config.registry import require
from lmx.config.value import to_jsonable
from lmx.core import sharding
from lmx.data.tokenizer.base import TOKENIZER_DIR
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.models.hf.weights import flatten_params
from lmx.models.trained_model import TrainedModel
from lmx.run.run_dir import RunDir, read_config, read_metadata, read_run_ids
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import CheckpointReader, DamageError

ORIGIN = ("family", "hf_fields", "generation")  # fields of `Pretrained` for an export


class RunWeights:
    """The parameters in a checkpoint of a run, read when they are loaded.

    Attributes:
        step: of the checkpoint, the newest by default.
        digest: of all its tensors.
        shapes: by the path of a parameter, as in `norm.scale`.
        origin: as in `TrainedModel`.
    """

    def __init__(self, path: Path, step: int | None = None):
        """Raises ConfigError if the run has no such checkpoint."""
        self.path, self.config = path, read_config(path)
        folder = RunDir(path, writable=False).checkpoint_folder
        self.checkpoints = CheckpointManager(folder, run_ids=read_run_ids(path))
        steps = self.checkpoints.list_steps()
        require(steps, f"{path} has no checkpoint yet: train it further first.")
        self.step = steps[-1] if step is None else step
        require(
            self.step in steps,
            f"{path} has no checkpoint of step {step}: it has"
            f" {', '.join(map(str, steps))}.",
        )
        reader = CheckpointReader(self.checkpoints.directory.step_path(self.step))
        metadata = reader.read_metadata()
        self.digest = metadata["root"]
        self.shapes = {
            name.removeprefix("params.").removesuffix(".value"): tuple(
                reader.open_tensor(name).shape
            )
            for name in metadata["digests"]
            if name.startswith("params.")
        }

    @property
    def origin(self) -> Mapping[str, Any]:
        fields = self.config.fields
        if self.config.name == "Pretrained":
            return {name: to_jsonable(fields[name]) for name in ORIGIN}
        return read_metadata(self.path).get("init_from", {}).get("origin", {})

    def load(self, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The parameters at these paths, with these dtypes and shardings."""
        names = {f"params.{path}.value": leaf for path, leaf in abstract.items()}
        loaded = self.checkpoints.restore(self.step, names)
        return {path: loaded[f"params.{path}.value"] for path in abstract}


def restore(path: str | Path) -> TrainedModel:
    """The model in the newest checkpoint of a run: `restore(run).model(tokens)`.

    On one device.
    """
    while True:
        try:
            return _restore(RunWeights(Path(path)))
        except DamageError as error:
            if error.path.exists():
                raise  # else the run, which still trains, has just removed it


def _restore(weights: RunWeights) -> TrainedModel:
    """The model with these weights."""
    build = weights.config.build().model
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = sharding.with_shardings(shapes, device)
    loaded = weights.load(flatten_params(abstract))
    params = jax.tree.unflatten(jax.tree.structure(shapes), loaded.values())
    has_tokenizer = (weights.path / TOKENIZER_DIR).is_dir()
    tokenizer = load_tokenizer(weights.path) if has_tokenizer else None
    return TrainedModel(
        config=weights.config,
        step=weights.step,
        graph=graph,
        params=params,
        tokenizer=tokenizer,
        origin=weights.origin,
    )
