"""The gap between a model's loss and the exact entropy of a synthetic language."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from lmx.config.registry import Positive, configurable
from lmx.data.synthetic.base import SyntheticDataset
from lmx.evals.perplexity import make_scorer, score_batches
from lmx.run.run_dir import Values
from lmx.train.hook import Hook, HookConfig, every_steps
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class EntropyGap(HookConfig):
    """Nats per target on unseen rows of a synthetic language, minus its entropy.

    The batches are those of steps after the last one of the run.

    Attributes:
        data: the language; if it is that of the run, `excess` can reach 0.
        every: steps between measurements; the last step is always measured.
        batches: number of batches of each measurement.
        name: prefix of the metrics, as in `fresh/excess`.
    """

    data: SyntheticDataset
    every: Positive[int] = 1000
    batches: Positive[int] = 16
    name: str = "fresh"

    def build(self, run: RunContext) -> Hook:
        data = self.data.open()
        score = make_scorer(run, data)

        def measure(step: int, state: TrainState, metrics: Metrics) -> Values:
            del step, metrics
            nats, weights, _ = score_batches(
                partial(score, state.all_params),
                lambda index: run.load_batch(data, run.seed, run.steps + index),
                self.batches,
                self.name,
            )
            mean, error = estimate_mean(nats, weights)
            entropy = self.data.entropy
            values = {"nats": mean, "entropy": entropy, "excess": mean - entropy}
            values["standard_error"] = error
            return {f"{self.name}/{k}": v for k, v in values.items()}

        return Hook(call=measure, is_due=every_steps(self.every, run.steps))


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
