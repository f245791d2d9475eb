"""Restores the trained model from the folder of a run."""

from pathlib import Path

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from lmx.config.registry import require
from lmx.core import sharding
from lmx.data.tokenizer.base import TOKENIZER_DIR
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.models.trained_model import TrainedModel
from lmx.run.run_dir import RunDir, read_config, read_run_ids
from lmx.train.checkpoint.manager import CheckpointManager


def restore(path: str | Path) -> TrainedModel:
    """The model in the newest checkpoint of a run: `restore(run).model(tokens)`.

    On one device.
    """
    path = Path(path)
    config = read_config(path)
    folder = RunDir(path).checkpoint_folder
    checkpoints = CheckpointManager(folder, run_ids=read_run_ids(path))
    steps = checkpoints.list_steps()
    require(steps, f"{path} has no checkpoint yet: train it further first.")
    build = config.build().model
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = sharding.with_shardings(shapes, device)
    params = checkpoints.restore(steps[-1], {"params": abstract})["params"]
    has_tokenizer = (path / TOKENIZER_DIR).is_dir()
    tokenizer = load_tokenizer(path) if has_tokenizer else None
    return TrainedModel(config, steps[-1], graph, params, tokenizer)
