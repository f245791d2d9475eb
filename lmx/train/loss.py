"""Losses: their base class, and cross-entropy of the next token and of later ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lmx.config.registry import Execution, NonNegative, Positive, configurable, require
from lmx.core.batch import AnyBatch, Batch
from lmx.core.mean import Mean
from lmx.models.mtp import mtp_hidden_states

Means = Mapping[str, Mean]


class Loss(ABC):
    """What training minimizes."""

    def frozen(self, model: Any) -> Mapping[str, Any]:
        """Modules and arrays that training does not change, such as a teacher.

        Each is passed to `__call__` by its name, and sharded like parameters. This is
        called whenever the run starts or resumes, and must then give the same to the
        bit. `model` is the model that training began with.
        """
        del model
        return {}

    @abstractmethod
    def __call__(
        self, model: Any, batch: AnyBatch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss of a batch, and the means to log by name, `nats` among them if any.

        Totals and weights are sums over the rows, so that those of the parts of a batch
        add up to those of the batch. `keys` are for dropout.
        """


@configurable
@dataclass(frozen=True, kw_only=True)
class NextToken(Loss):
    """Cross-entropy in nats per weighted token, plus auxiliary losses.

    Attributes:
        z_loss: weight of the squared log of the softmax's denominator, which keeps it
            near 1 (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
        aux: weight of each auxiliary loss that the model returns, by name.
        chunk: tokens of a row whose logits are in memory at a time; None: all.
    """

    z_loss: NonNegative[float] = 0.0
    aux: Mapping[str, float] = field(default_factory=dict)
    chunk: Execution[Positive[int | None]] = None

    def __call__(
        self, model: Any, batch: AnyBatch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss, and the means of its terms.

        An auxiliary loss is a mean over layers and a sum over unpadded tokens, divided
        by the weight of the targets like the nats, so that microbatches add up exactly.
        """
        inputs = (batch.tokens, batch.positions, batch.segments, keys)
        x_BTD, aux = model.hidden_states(*inputs)
        return self.combine(*self.sum_targets(model, x_BTD, batch), aux)

    def sum_targets(
        self, model: Any, x: Float[Array, "B T D"], batch: AnyBatch
    ) -> tuple[Mean, Mean]:
        """Nats and squared log-denominators of the targets, from hidden states."""
        return sum_over_chunks(
            lambda x, batch: sum_cross_entropy(model.logits(x), batch),
            self.chunk,
            x,
            Batch(*(getattr(batch, name) for name in Batch._fields)),
        )

    def combine(self, nats: Mean, log_z: Mean, aux: Means) -> tuple[Mean, Means]:
        """The loss from its terms."""
        require(
            set(self.aux) == set(aux),
            f"NextToken.aux has {sorted(self.aux)} but the model returns"
            f" {sorted(aux)}: give each a weight, which may be 0.0.",
        )
        extra = sum(scale * aux[name].total.mean() for name, scale in self.aux.items())
        loss = Mean(nats.total + self.z_loss * log_z.total + extra, nats.weight)
        return loss, {"nats": nats, "log_z_squared": log_z, **aux}


@configurable
@dataclass(frozen=True, kw_only=True)
class MultiToken(NextToken):
    """`NextToken`, plus the cross-entropy of later tokens, predicted by `Decoder.mtp`.

    DeepSeek-AI 2024, arXiv:2412.19437, section 2.2, equations 24 and 25.

    Attributes:
        mtp_weight: weight of the mean cross-entropy of the later tokens.
    """

    mtp_weight: NonNegative[float] = 0.3

    def __call__(
        self, model: Any, batch: AnyBatch, keys: Key[Array, "B"] | None = None
    ) -> tuple[Mean, Means]:
        """The loss, and the means of its terms; `nats_2` is of the token after next.

        Later tokens of another document have weight 0.
        """
        require(
            model.mtp is not None,
            "MultiToken needs a model with multi-token prediction: set Decoder.mtp"
            " = @MultiTokenPrediction, or Experiment.loss = @NextToken().",
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


def sum_cross_entropy(
    logits: Float[Array, "B T V"], batch: AnyBatch
) -> tuple[Mean, Mean]:
    """Weighted sums of the nats of targets and of squared log-denominators."""
    log_z_BT = jax.nn.logsumexp(logits, axis=-1)
    target_BT1 = jnp.take_along_axis(logits, batch.targets[:, :, None], axis=-1)
    weights_BT = batch.weights.astype(logits.dtype)
    both = log_z_BT - target_BT1[:, :, 0], jnp.square(log_z_BT)
    nats, squares = (Mean((x * weights_BT).sum(), weights_BT.sum()) for x in both)
    return nats, squares


Sums = TypeVar("Sums")


def sum_over_chunks(fn: Callable[..., Sums], chunk: int | None, *arrays: Any) -> Sums:
    """Sums `fn` over chunks of arrays whose dimensions start with B and T.

    A chunk has `chunk` tokens of every row. The backward pass recomputes it. Chunk i
    of n has tokens i, i + n, ..., so that each device keeps the tokens it has. None
    calls `fn` once.
    """
    if chunk is None:
        return fn(*arrays)
    T = jax.tree.leaves(arrays)[0].shape[1]
    require(
        T % chunk == 0,
        f"rows of {T} tokens cannot be split into chunks of {chunk}:"
        " NextToken.chunk must divide the length of a row.",
    )
    chunks = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(len(x), chunk, -1, *x.shape[2:]), 2, 0), arrays
    )
    remat = jax.checkpoint(fn, prevent_cse=False)  # a loop prevents it anyway
    sums = jax.lax.map(lambda chunk: remat(*chunk), chunks)
    return jax.tree.map(lambda x: x.sum(axis=0), sums)


def shift_targets(batch: AnyBatch, offset: int) -> AnyBatch:
    """The batch with targets `offset` tokens later, of the same document."""
    T = batch.tokens.shape[1]
    fields = (batch.targets, batch.weights, batch.segments)
    targets_BT, weights_BT, segments_BT = (jnp.roll(x, -offset, axis=1) for x in fields)
    inside_BT = (segments_BT == batch.segments) & (jnp.arange(T) < T - offset)[None]
    return batch._replace(
        targets=targets_BT, weights=jnp.where(inside_BT, weights_BT, 0)
    )
