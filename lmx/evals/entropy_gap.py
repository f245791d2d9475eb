"""How far a model is from the best that there can be, where that is known."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from lmx.config.registry import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.data.synthetic.base import SyntheticDataset
from lmx.run.run_dir import Values
from lmx.train.hook import Hook, HookConfig, every_steps
from lmx.train.program import RunContext, abstract_batch, batch_sharding
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class EntropyGap(HookConfig):
    """Nats per target on fresh rows of a made language, beside its exact entropy.

    The batches are those of steps that the run does not reach.

    Attributes:
        data: the language; where it is that of the run, `excess` is what is left to
            learn.
        every: steps between two measures; there is one at the end in any case.
        batches: how many each time.
        name: what the metrics are called, as in `fresh/excess`.
    """

    data: SyntheticDataset
    every: int = 1000
    batches: int = 16
    name: str = "fresh"

    def __post_init__(self):
        if self.batches < 1:
            raise ConfigError(f"EntropyGap.batches is {self.batches}: at least 1.")

    def build(self, run: RunContext) -> Hook:
        replicated = NamedSharding(run.mesh, PartitionSpec())
        score = jax.jit(partial(score_rows, run.graph), out_shardings=replicated)
        data: Any = self.data.open()
        batch = abstract_batch(data)
        # Fails now, not at the first measurement.
        batch_sharding(batch.tokens.shape, run.mesh, run.rules)
        jax.eval_shape(score, run.abstract_state().params, batch)

        def measure(step: int, state: TrainState, metrics: Metrics) -> Values:
            del step, metrics
            unseen = range(run.steps, run.steps + self.batches)
            batches = (run.load_batch(data, run.seed, step) for step in unseen)
            rows = [score(state.params, batch) for batch in batches]
            nats, weights = np.concatenate(np.asarray(rows, np.float64), 1)
            mean, error = estimate_mean(nats, weights)
            best = self.data.entropy
            values = {"nats": mean, "entropy": best, "excess": mean - best}
            values["standard_error"] = error
            return {f"{self.name}/{k}": v for k, v in values.items()}

        return Hook(call=measure, is_due=every_steps(self.every, run.steps))


def score_rows(
    graph: nnx.GraphDef, params: PyTree, batch: Batch
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Nats and weights of the targets of each row, in total."""
    logits_BTV, _ = nnx.merge(graph, params).forward(
        batch.tokens, batch.positions, batch.segments
    )
    hit_BT1 = jnp.take_along_axis(logits_BTV, batch.targets[:, :, None], axis=-1)
    nats_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - hit_BT1[:, :, 0]
    weights_BT = batch.weights.astype(nats_BT.dtype)
    return (nats_BT * weights_BT).sum(axis=1), weights_BT.sum(axis=1)


def estimate_mean(
    nats: Float[np.ndarray, "B"], weights: Float[np.ndarray, "B"]
) -> tuple[float, float]:
    """Nats per weighted target, and the standard error of that.

    Rows are independent, and tokens of a row are not: so the error is that of a ratio
    of sums over rows. Cochran 1977, "Sampling Techniques", section 6.3.
    """
    mean = nats.sum() / weights.sum()
    rest = nats - mean * weights
    spread = np.square(rest).sum() * len(rest) / max(len(rest) - 1, 1)
    return float(mean), float(np.sqrt(spread) / weights.sum())
