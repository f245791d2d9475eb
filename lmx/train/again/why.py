"""What a step learned from: its documents, and how well each token was foretold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.core import rng, spread
from lmx.data.batches import Batch
from lmx.data.rows.numbered import documents
from lmx.data.rows.packing import Origin
from lmx.data.tokenizers.codec import Codec, piece_of
from lmx.train.again.past import Past
from lmx.train.again.replay import Numbers, measured
from lmx.train.optim.outer import Apart
from lmx.train.step import Metrics, Recipe, TrainState


class Told(NamedTuple):
    """A document, or a part of one, as it stood in the batch of a step.

    Target t comes after token t. `nats` are those of each target, whether it was to be
    learned, which its weight says, or not.
    """

    origin: Origin
    place: int  # of its first token in the row
    tokens: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " T"]
    weights: Float[np.ndarray, " T"]
    nats: Float[np.ndarray, " T"]

    @property
    def mean(self) -> float:
        """Nats per weighted target; 0 if none was to be learned."""
        weight = float(self.weights.sum())
        return float((self.nats * self.weights).sum()) / weight if weight else 0.0


class Worst(NamedTuple):
    """A target that was to be learned, and how far it was from being foretold."""

    nats: float
    told: Told
    index: int  # of the target in what is told


@dataclass(frozen=True)
class Why:
    """A step of a run, looked at closely.

    Attributes:
        begun: the step whose state on disk was gone on from; 0 for the beginning.
        told: all that the batch says, row by row.
        metrics: what the step measured, norms of layers among them.
        codec: what tokens mean as text; None where they mean none.
    """

    begun: int
    step: int
    told: list[Told]
    metrics: Numbers
    codec: Codec | None

    @property
    def nats(self) -> float:
        """Per weighted target, of the whole batch."""
        total = sum(float((told.nats * told.weights).sum()) for told in self.told)
        return total / max(sum(float(told.weights.sum()) for told in self.told), 1.0)

    def worst(self, count: int) -> list[Worst]:
        """The targets that were foretold worst, the worst first."""
        every = [
            Worst(nats, told, index)
            for told in self.told
            for index, nats in enumerate(told.nats.tolist())
            if told.weights[index] > 0
        ]
        return sorted(every, key=lambda worst: -worst.nats)[:count]

    @property
    def layers(self) -> Mapping[str, list[float | str]]:
        """Norms by layer of `grad`, `update` and `param`."""
        found: dict[str, list[float | str]] = {}
        for name, value in self.metrics.items():
            kind, _, layer = name.partition("_norm/layer/")
            if layer:
                found.setdefault(kind, []).append(value)
        return found

    def text(self, tokens: Iterable[SupportsIndex]) -> str:
        """Tokens as text; `<7>` for one that has none."""
        pieces = () if self.codec is None else self.codec.pieces
        said = b"".join(piece_of(t, pieces) or f"<{t}>".encode() for t in tokens)
        return said.decode(errors="backslashreplace")


def why(past: Past, step: int) -> Why:
    """Looks at the batch of that step with the parameters that the step found.

    They are the nearest state on disk, gone on from. Dropout and the like are those of
    training, so that the mean over tokens is the logged one but for rounding.
    """
    past.check(step)
    state = past.nearest(step - 1)
    begun = int(state.step)
    state = past.go(state, step - 1)
    run, found = past.run, {}
    number = past.data_step(step) - 1
    batch = run.read(run.data, run.seed, number)
    nats = by_token(past, state, batch)

    def keep(done: int, state: TrainState, metrics: Metrics) -> None:
        del state
        found[done] = measured(metrics)

    past.go(state, step, keep)
    plain = run.data.batch_at(run.seed, number)
    whose = documents(run.data, run.seed, number)
    told = [_told(origin, plain, nats) for origin in whose]
    return Why(begun, step, told, found[step], run.data.tokenizer)


def _told(origin: Origin, batch: Batch, nats: Float[np.ndarray, "B T"]) -> Told:
    """What the batch has of that document."""
    here = np.flatnonzero(batch.segments[origin.row] == origin.segment)
    fields = (batch.tokens, batch.targets, batch.weights, nats)
    return Told(origin, int(here[0]), *(field[origin.row][here] for field in fields))


def by_token(past: Past, state: TrainState, batch: Batch) -> Float[np.ndarray, "B T"]:
    """Nats of every target of a batch; with replicas apart, each those of its rows."""
    recipe = past.experiment.program(jax.devices()).recipe
    keys_B = rng.fold(recipe.seed, state.step, "dropout", batch.tokens.shape[0])
    take = spread.traced_for(past.run.mesh, past.run.rules, partial(token_nats, recipe))
    take = jax.jit(take)
    if not isinstance(state.opt_state, Apart):
        return np.asarray(take(state.params, batch, keys_B))
    replicas = jax.tree.leaves(state.opt_state.params)[0].shape[0]
    rows = jax.tree.map(
        lambda x: x.reshape(replicas, -1, *x.shape[1:]), (batch, keys_B)
    )
    found = [
        take(*jax.tree.map(lambda x, n=n: x[n], (state.opt_state.params, *rows)))
        for n in range(replicas)
    ]
    return np.concatenate([np.asarray(part) for part in found])


def token_nats(
    recipe: Recipe, params: PyTree, batch: Batch, keys: Key[Array, "B"]
) -> Float[Array, "B T"]:
    """Nats of every target, as the loss of the recipe has them.

    That is the derivative of their weighted sum by the weights: so a loss may take the
    batch in microbatches and chunks, and no logits are held that it does not hold.
    """

    def total(weights: Float[Array, "B T"], batch: Batch, keys: Key[Array, "B"]):
        model = nnx.merge(recipe.graph, params)
        _, means = recipe.loss(model, batch._replace(weights=weights), keys)
        return means["nats"].total.sum()

    parts = recipe.microbatches
    split = jax.tree.map(
        lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (batch, keys)
    )
    nats = jax.lax.map(lambda part: jax.grad(total)(part[0].weights, *part), split)
    return nats.swapaxes(0, 1).reshape(batch.tokens.shape)
