"""A trained model, out of the folder of its run."""

from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from lmx.config.registry import ConfigError
from lmx.config.resolve import from_json
from lmx.config.value import Config
from lmx.data.tokenizer.base import Tokenizer, load
from lmx.models.decoder import Decoder
from lmx.models.hf.pretrained import Pretrained
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.experiment import Experiment


class TrainedModel(NamedTuple):
    """What a run has learned."""

    config: Config[Experiment] | Config[Pretrained]
    step: int
    graph: nnx.GraphDef
    params: PyTree
    tokenizer: Tokenizer | None

    @property
    def model(self) -> Decoder:
        """The model with its parameters."""
        return nnx.merge(self.graph, self.params)

    @property
    def num_parameters(self) -> int:
        """How many numbers it has learned."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def restore(path: str | Path) -> TrainedModel:
    """The newest state of a run, its parameters on one device."""
    path = Path(path)
    if not (path / "experiment.json").is_file():
        raise ConfigError(f"{path} is no run: it has no experiment.json.")
    config = from_json((path / "experiment.json").read_text())
    checkpoints = CheckpointManager(RunDir(path).checkpoint_folder, keep=1)
    steps = checkpoints.list_steps()
    if not steps:
        raise ConfigError(f"{path} has saved nothing yet: train it further first.")
    make = config.build().model
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    place = SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )
    params = checkpoints.restore(steps[-1], {"params": like})["params"]
    has_codec = any(path.glob("tokenizer*"))
    return TrainedModel(
        config, steps[-1], graph, params, load(path) if has_codec else None
    )
