"""What a step learned from: its documents, and how well each token was foretold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.analysis.history import RecordedRun
from lmx.analysis.replay import Scalars, to_scalars
from lmx.core import partitioning, rng
from lmx.core.batch import Batch
from lmx.data.dataset import DocumentSpan
from lmx.data.tokenizer.base import Tokenizer, token_to_bytes
from lmx.train.diloco import ReplicaState
from lmx.train.step import Metrics, StepConfig, TrainState


class ScoredDocument(NamedTuple):
    """A document, or a part of one, as it stood in the batch of a step.

    Target t comes after token t. `nats` are those of each target, whether it was to be
    learned, which its weight says, or not.
    """

    origin: DocumentSpan
    start: int  # of its first token in the row
    tokens: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " T"]
    weights: Float[np.ndarray, " T"]
    nats: Float[np.ndarray, " T"]

    @property
    def mean_nats(self) -> float:
        """Nats per weighted target; 0 if none was to be learned."""
        weight = float(self.weights.sum())
        return float((self.nats * self.weights).sum()) / weight if weight else 0.0


class WorstToken(NamedTuple):
    """A target that was to be learned, and how far it was from being foretold."""

    nats: float
    document: ScoredDocument
    index: int  # of the target in what is told


@dataclass(frozen=True)
class BatchReport:
    """A step of a run, looked at closely.

    Attributes:
        begun: the step whose state on disk was gone on from; 0 for the beginning.
        told: all that the batch says, row by row.
        metrics: what the step measured, norms of layers among them.
        codec: what tokens mean as text; None where they mean none.
    """

    start_step: int
    step: int
    documents: list[ScoredDocument]
    metrics: Scalars
    tokenizer: Tokenizer | None

    @property
    def nats(self) -> float:
        """Per weighted target, of the whole batch."""
        total = sum(float((told.nats * told.weights).sum()) for told in self.documents)
        return total / max(
            sum(float(told.weights.sum()) for told in self.documents), 1.0
        )

    def worst_tokens(self, count: int) -> list[WorstToken]:
        """The targets that were foretold worst, the worst first."""
        every = [
            WorstToken(nats, told, index)
            for told in self.documents
            for index, nats in enumerate(told.nats.tolist())
            if told.weights[index] > 0
        ]
        return sorted(every, key=lambda worst: -worst.nats)[:count]

    @property
    def layer_norms(self) -> Mapping[str, list[float | str]]:
        """Norms by layer of `grad`, `update` and `param`."""
        found: dict[str, list[float | str]] = {}
        for name, value in self.metrics.items():
            kind, _, layer = name.partition("_norm/layer/")
            if layer:
                found.setdefault(kind, []).append(value)
        return found

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """Tokens as text; `<7>` for one that has none."""
        pieces = () if self.tokenizer is None else self.tokenizer.vocab_bytes
        said = b"".join(token_to_bytes(t, pieces) or f"<{t}>".encode() for t in tokens)
        return said.decode(errors="backslashreplace")


def inspect_step(past: RecordedRun, step: int) -> BatchReport:
    """Looks at the batch of that step with the parameters that the step found.

    They are the nearest state on disk, gone on from. Dropout and the like are those of
    training, so that the mean over tokens is the logged one but for rounding.
    """
    past.check_step(step)
    state = past.restore_at_or_before(step - 1)
    begun = int(state.step)
    state = past.advance(state, step - 1)
    run, found = past.run, {}
    number = past.data_step(step) - 1
    batch = run.load_batch(run.data, run.seed, number)
    nats = score_tokens(past, state, batch)

    def keep(done: int, state: TrainState, metrics: Metrics) -> None:
        del state
        found[done] = to_scalars(metrics)

    past.advance(state, step, keep)
    plain = run.data.batch_at(run.seed, number)
    whose = run.data.locate_at(run.seed, number)
    told = [_score_document(origin, plain, nats) for origin in whose]
    return BatchReport(begun, step, told, found[step], run.data.info.tokenizer)


def _score_document(
    origin: DocumentSpan, batch: Batch, nats: Float[np.ndarray, "B T"]
) -> ScoredDocument:
    """What the batch has of that document."""
    here = np.flatnonzero(batch.segments[origin.row] == origin.segment)
    fields = (batch.tokens, batch.targets, batch.weights, nats)
    return ScoredDocument(
        origin, int(here[0]), *(field[origin.row][here] for field in fields)
    )


def score_tokens(
    past: RecordedRun, state: TrainState, batch: Batch
) -> Float[np.ndarray, "B T"]:
    """Nats of every target of a batch; with replicas apart, each those of its rows."""
    recipe = past.experiment.build_program(jax.devices()).recipe
    keys_B = rng.fold(recipe.seed, state.step, "dropout", batch.tokens.shape[0])
    take = partitioning.with_partitioning(
        past.run.mesh, past.run.rules, partial(compute_token_nats, recipe)
    )
    take = jax.jit(take)
    if not isinstance(state.opt_state, ReplicaState):
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


def compute_token_nats(
    recipe: StepConfig, params: PyTree, batch: Batch, keys: Key[Array, "B"]
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
