"""A user's module: a loss, a batch with a field of its own, and rollouts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32

from lmx.config.registry import configurable
from lmx.core.batch import Batch, BatchSpec
from lmx.core.mean import Mean
from lmx.data.dataset import (
    Dataset,
    DatasetWrapper,
    RolloutDataset,
    WrapperConfig,
)
from lmx.models.decoder import Decoder
from lmx.train.loss import Loss, sum_cross_entropy


class TemperedBatch(NamedTuple):
    """A batch with the temperature of each row, and two numbers of each token."""

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    weights: Float32[np.ndarray, "B T"]
    positions: Int32[np.ndarray, "B T"]
    segments: Int32[np.ndarray, "B T"]
    temperature: Float32[np.ndarray, "B"]
    pair: Float32[np.ndarray, "B T pair"]


@configurable
@dataclass(frozen=True, kw_only=True)
class Tempered(WrapperConfig):
    """Another dataset, and a temperature for each of its rows."""

    pair: int = 2

    @property
    def spec(self) -> BatchSpec:
        return BatchSpec(TemperedBatch, {"pair": self.pair})

    def open(self) -> Any:
        return TemperedDataset(source=self.source.open())


@dataclass(frozen=True, kw_only=True, eq=False)
class TemperedDataset(DatasetWrapper):
    def read(self, request: Any) -> TemperedBatch:
        batch = self.source.read(request)
        temperature = 1 + (request.indices % 3).astype(np.float32)
        pair = np.repeat(batch.weights[:, :, None], 2, axis=2)
        return TemperedBatch(*batch[:5], temperature=temperature, pair=pair)


@configurable
@dataclass(frozen=True, kw_only=True)
class TemperedLoss(Loss):
    """Cross-entropy at the temperature of each row. It returns no nats."""

    def __call__(self, model: Any, batch: Any, keys: Any = None) -> Any:
        x_BTD, _ = model.hidden_states(
            batch.tokens, batch.positions, batch.segments, keys
        )
        logits = model.logits(x_BTD) / batch.temperature[:, None, None]
        total, _ = sum_cross_entropy(logits, batch._replace(weights=batch.pair[..., 1]))
        return total, {"tempered": total}


@configurable
@dataclass(frozen=True, kw_only=True)
class Rollouts(WrapperConfig):
    """Rows whose second half the model writes; the loss is of that half."""

    def open(self) -> Dataset:
        return RolloutsDataset(source=self.source.open())


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutsDataset(DatasetWrapper, RolloutDataset):
    def rollout(self, model: Any, batch: Any, keys: Any) -> Batch:
        T = batch.tokens.shape[1]
        logits = compute_logits(*nnx.split(model), batch)
        later = jnp.arange(T)[None] >= T // 2
        targets = jnp.where(later, logits.argmax(axis=-1), batch.targets)
        weights = (later & (targets != batch.targets)).astype(jnp.float32)
        return batch._replace(targets=targets.astype(jnp.int32), weights=weights)


@partial(jax.jit, static_argnums=0)
def compute_logits(graph: Any, params: Any, batch: Any) -> Any:
    model = nnx.merge(graph, params)
    return model(batch.tokens, batch.positions, batch.segments)


@configurable
@dataclass(frozen=True, kw_only=True)
class Distill(Loss):
    """Cross-entropy, and that of a teacher's distribution at each row's temperature.

    Attributes:
        teacher: a model with random parameters; None: the model at the start.
        weight: of the teacher's part.
    """

    teacher: Callable[..., Decoder] | None = None
    seed: int = 7
    weight: float = 1.0

    def frozen(self, model: Any) -> Any:
        return {"teacher": self.teacher(nnx.Rngs(self.seed)) if self.teacher else model}

    def __call__(
        self, model: Any, batch: Any, keys: Any = None, teacher: Any = None
    ) -> Any:
        inputs = (batch.tokens, batch.positions, batch.segments)
        x_BTD, _ = model.hidden_states(*inputs, keys)
        logits_BTV = model.logits(x_BTD)
        nats, _ = sum_cross_entropy(logits_BTV, batch)
        heat_B11 = batch.temperature[:, None, None]
        wanted_BTV = jax.nn.softmax(teacher(*inputs) / heat_B11)
        given_BTV = jax.nn.log_softmax(logits_BTV / heat_B11)
        each_BT = -(wanted_BTV * given_BTV).sum(axis=-1) * batch.weights
        taught = Mean(each_BT.sum(), batch.weights.sum())
        loss = Mean(nats.total + self.weight * taught.total, nats.weight)
        return loss, {"nats": nats, "taught": taught}
