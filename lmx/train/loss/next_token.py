"""What pretraining minimises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lmx.config.names import ConfigError, configurable
from lmx.core.batch import Batch
from lmx.core.mean import Mean

Means = Mapping[str, Mean]


@configurable
@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy in nats per weighted token, plus auxiliary losses.

    Attributes:
        z_loss: nats per squared log of the softmax's denominator, which it keeps near
            1 (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
        aux: nats per unit of each auxiliary loss that the model returns, by name.
    """

    z_loss: float = 0.0
    aux: Mapping[str, float] = field(default_factory=dict)

    def __call__(
        self, model: Any, batch: Batch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss, and the means it is made of.

        An auxiliary loss is a mean over layers and a sum over live tokens, divided with
        the nats by the weight of the targets: so that parts of a batch add up exactly.
        """
        inputs = (batch.tokens, batch.positions, batch.segments, keys)
        logits_BTV, aux = model.forward(*inputs)
        return self.of(logits_BTV, batch, aux)

    def of(
        self, logits: Float[Array, "B T V"], batch: Batch, aux: Means
    ) -> tuple[Mean, Means]:
        """The loss of these logits and auxiliary means."""
        if set(self.aux) != set(aux):
            raise ConfigError(
                f"NextToken.aux weighs {sorted(self.aux)} but the model returns"
                f" {sorted(aux)}: name each, with 0.0 for none."
            )
        nats, log_z = nats_of(logits, batch), log_z_squared(logits, batch)
        extra = sum(scale * aux[name].total.mean() for name, scale in self.aux.items())
        loss = Mean(nats.total + self.z_loss * log_z.total + extra, nats.weight)
        return loss, {"nats": nats, "log_z_squared": log_z, **aux}


def nats_of(logits: Float[Array, "B T V"], batch: Batch) -> Mean:
    """Cross-entropy of the targets in nats, by their weights."""
    log_z_BT = jax.nn.logsumexp(logits, axis=-1)
    at_BT1 = batch.targets[:, :, None]
    hit_BT = jnp.take_along_axis(logits, at_BT1, axis=-1)[:, :, 0]
    return _weighted(log_z_BT - hit_BT, batch)


def log_z_squared(logits: Float[Array, "B T V"], batch: Batch) -> Mean:
    """The squared log of the softmax's denominator, by the weights of the targets."""
    return _weighted(jnp.square(jax.nn.logsumexp(logits, axis=-1)), batch)


def _weighted(values: Float[Array, "B T"], batch: Batch) -> Mean:
    weights_BT = batch.weights.astype(values.dtype)
    return Mean((values * weights_BT).sum(), weights_BT.sum())
