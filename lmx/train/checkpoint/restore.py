"""Restores the trained model from the folder of a run."""

from pathlib import Path

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from lmx.core import sharding
from lmx.data.tokenizer.base import TOKENIZER_DIR
from lmx.data.tokenizer.pretrained import load_tokenizer
from lmx.models.params import flatten_params
from lmx.models.trained_model import TrainedModel
from lmx.train.checkpoint.frozen import load_frozen_params
from lmx.train.checkpoint.reader import DamageError
from lmx.train.checkpoint.run_weights import RunWeights


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
    """The model with these weights."""
    build = weights.config.build().model
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = sharding.with_shardings(shapes, device)
    wanted, frozen = flatten_params(abstract), load_frozen_params(weights)
    loaded = weights.load({p: x for p, x in wanted.items() if p not in frozen}) | frozen
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
