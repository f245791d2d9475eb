"""Multi-token prediction (MTP) loss."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from lmx.config.registry import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.core.mean import Mean
from lmx.models.mtp import mtp_hidden_states
from lmx.train.loss.next_token import Means, NextToken


@configurable
@dataclass(frozen=True, kw_only=True)
class MultiToken(NextToken):
    """`NextToken`, plus the cross-entropy of later tokens, predicted by `Decoder.mtp`.

    DeepSeek-AI 2024, arXiv:2412.19437, section 2.2, equations 24 and 25.

    Attributes:
        mtp_weight: weight of the mean cross-entropy of the later tokens.
    """

    mtp_weight: float = 0.3

    def __call__(
        self, model: Any, batch: Batch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss, and the means of its terms; `nats_2` is of the token after next.

        Later tokens of another document have weight 0.
        """
        if model.mtp is None:
            raise ConfigError(
                "MultiToken needs a model with multi-token prediction: set Decoder.mtp"
                " = @MultiTokenPrediction, or Experiment.loss = @NextToken()."
            )
        inputs = (batch.tokens, batch.positions, batch.segments, keys)
        (x_BTD, *later), aux = mtp_hidden_states(model, *inputs)
        loss, means = self.combine(*self.sum_targets(model, x_BTD, batch), aux)
        for number, x_BTD in enumerate(later, 1):
            nats, _ = self.sum_targets(model, x_BTD, shift_targets(batch, number))
            means = {**means, f"nats_{number + 1}": nats}
            share = self.mtp_weight / len(later)
            loss = loss._replace(total=loss.total + share * nats.total)
        return loss, means


def shift_targets(batch: Batch, offset: int) -> Batch:
    """The batch with targets `offset` tokens later, of the same document."""
    T = batch.tokens.shape[1]
    rolled = [
        jnp.roll(x, -offset, axis=1)
        for x in (batch.targets, batch.weights, batch.segments)
    ]
    inside_BT = (rolled[2] == batch.segments) & (jnp.arange(T) < T - offset)[None]
    weights_BT = jnp.where(inside_BT, rolled[1], 0)
    return batch._replace(targets=rolled[0], weights=weights_BT)
