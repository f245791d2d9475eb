"""What pretraining minimises when a model predicts several tokens ahead."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from lmx.config.names import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.core.mean import Mean
from lmx.models.ahead import foresee
from lmx.train.loss.next_token import Means, NextToken


@configurable
@dataclass(frozen=True, kw_only=True)
class MultiToken(NextToken):
    """`NextToken`, and the same for every token that `Decoder.ahead` predicts.

    DeepSeek-AI 2024, arXiv:2412.19437, section 2.2, equations 24 and 25.

    Attributes:
        further: nats per nat of the mean over the tokens ahead.
    """

    further: float = 0.3

    def __call__(
        self, model: Any, batch: Batch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss, and the means it is made of: `nats_2` is of the token after next.

        Tokens ahead that are in another document weigh nothing.
        """
        if model.ahead is None:
            raise ConfigError(
                "MultiToken needs a model that predicts further ahead: set"
                " Decoder.ahead = @Ahead, or Experiment.loss = @NextToken()."
            )
        inputs = (batch.tokens, batch.positions, batch.segments, keys)
        (x_BTD, *further), aux = foresee(model, *inputs)
        loss, means = self.of(*self.sums(model, x_BTD, batch), aux)
        for number, x_BTD in enumerate(further, 1):
            nats, _ = self.sums(model, x_BTD, ahead(batch, number))
            means = {**means, f"nats_{number + 1}": nats}
            share = self.further / len(further)
            loss = loss._replace(total=loss.total + share * nats.total)
        return loss, means


def ahead(batch: Batch, tokens: int) -> Batch:
    """The batch with the targets of that many tokens later, in the same document."""
    T = batch.tokens.shape[1]
    later = [
        jnp.roll(x, -tokens, axis=1)
        for x in (batch.targets, batch.weights, batch.segments)
    ]
    inside_BT = (later[2] == batch.segments) & (jnp.arange(T) < T - tokens)[None]
    weights_BT = jnp.where(inside_BT, later[1], 0)
    return batch._replace(targets=later[0], weights=weights_BT)
