"""What pretraining minimises when a model predicts several tokens ahead."""

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
    """`NextToken`, and the same for every token that `Decoder.mtp` predicts.

    DeepSeek-AI 2024, arXiv:2412.19437, section 2.2, equations 24 and 25.

    Attributes:
        further: nats per nat of the mean over the tokens ahead.
    """

    mtp_weight: float = 0.3

    def __call__(
        self, model: Any, batch: Batch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss, and the means it is made of: `nats_2` is of the token after next.

        Tokens ahead that are in another document weigh nothing.
        """
        if model.mtp is None:
            raise ConfigError(
                "MultiToken needs a model that predicts further ahead: set"
                " Decoder.mtp = @MultiTokenPrediction, or Experiment.loss = @NextToken()."
            )
        inputs = (batch.tokens, batch.positions, batch.segments, keys)
        (x_BTD, *further), aux = mtp_hidden_states(model, *inputs)
        loss, means = self.combine(*self.sum_targets(model, x_BTD, batch), aux)
        for number, x_BTD in enumerate(further, 1):
            nats, _ = self.sum_targets(model, x_BTD, shift_targets(batch, number))
            means = {**means, f"nats_{number + 1}": nats}
            share = self.mtp_weight / len(further)
            loss = loss._replace(total=loss.total + share * nats.total)
        return loss, means


def shift_targets(batch: Batch, offset: int) -> Batch:
    """The batch with the targets of that many tokens later, in the same document."""
    T = batch.tokens.shape[1]
    later = [
        jnp.roll(x, -offset, axis=1)
        for x in (batch.targets, batch.weights, batch.segments)
    ]
    inside_BT = (later[2] == batch.segments) & (jnp.arange(T) < T - offset)[None]
    weights_BT = jnp.where(inside_BT, later[1], 0)
    return batch._replace(targets=later[0], weights=weights_BT)
