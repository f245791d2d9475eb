"""Restores the trained model from the folder of a run."""

from pathlib import Path

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from lmx.core import sharding
from lmx.core.sharding import RULES, Mesh
from lmx.data.tokenizer.base import TOKENIZER_DIR
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.models.params import flatten_params
from lmx.models.trained_model import TrainedModel
from lmx.train.checkpoint.init_from import RunWeights
from lmx.train.checkpoint.reader import DamageError


def restore(run: str | Path | TrainedModel) -> TrainedModel:
    """The model in the newest checkpoint of a run: `restore(run).model(tokens)`.

    On one device. A model that is restored already is returned.
    """
    if isinstance(run, TrainedModel):
        return run
    while True:
        try:
            return _restore(RunWeights(Path(run)))
        except DamageError as error:
            if error.path.exists():
                raise  # else the run, which still trains, has just removed it


def _restore(weights: RunWeights) -> TrainedModel:
    graph, shapes = nnx.split(weights.model)
    device = SingleDeviceSharding(jax.devices()[0])
    wanted = flatten_params(sharding.with_shardings(shapes, device))
    mesh = Mesh(data=1).build(jax.devices()[:1], RULES)
    loaded = weights.load(wanted, mesh, RULES)
    leaves = [loaded[path] for path in wanted]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
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
