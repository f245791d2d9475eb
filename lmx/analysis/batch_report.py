"""What a step was trained on: its documents, and the loss of each token."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.analysis.nonfinite import explain_step
from lmx.analysis.replay import RecordedRun, Scalars
from lmx.config.registry import require
from lmx.core.batch import AnyBatch, Batch
from lmx.data.dataset import DocumentSpan
from lmx.data.tokenizer.base import Tokenizer, token_to_bytes
from lmx.train.guard.nonfinite import FINITE_METRICS
from lmx.train.step import StepConfig, split_rows


class ScoredDocument(NamedTuple):
    """A document of a batch, or the part of it in one row.

    Target t follows token t. `nats` has the loss of every target, whatever its weight.
    """

    origin: DocumentSpan
    start: int  # position of its first token in the row
    tokens: Int[np.ndarray, " T"]
    targets: Int[np.ndarray, " T"]
    weights: Float[np.ndarray, " T"]
    nats: Float[np.ndarray, " T"]

    @property
    def mean_nats(self) -> float:
        """Nats per weighted target; 0 if no target has a weight."""
        return mean_nats([self])


class WorstToken(NamedTuple):
    """A target with a high loss, and its index in the document."""

    nats: float
    document: ScoredDocument
    index: int


@dataclass(frozen=True)
class BatchReport:
    """A step of a run in detail."""

    start_step: int  # whose checkpoint was restored; 0 for the initial state
    step: int
    documents: list[ScoredDocument]  # of the batch, row by row
    metrics: Scalars  # norms of layers among them
    tokenizer: Tokenizer | None  # None if tokens have no text
    cause: str | None = None  # where a number that is not finite comes from

    @property
    def nats(self) -> float:
        """Nats per weighted target of the batch."""
        return mean_nats(self.documents)

    def worst_tokens(self, count: int) -> list[WorstToken]:
        """The weighted targets with the highest loss, the highest first."""
        tokens = (
            WorstToken(nats, document, index)
            for document in self.documents
            for index, nats in enumerate(document.nats.tolist())
            if document.weights[index] > 0
        )
        return heapq.nlargest(count, tokens, key=lambda token: token.nats)

    @property
    def layer_norms(self) -> Mapping[str, list[float | str]]:
        """Norms by layer of `grad`, `update` and `param`."""
        norms: dict[str, list[float | str]] = {}
        for name, value in self.metrics.items():
            kind, _, layer = name.partition("_norm/layer/")
            if layer:
                norms.setdefault(kind, []).append(value)
        return norms

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """Tokens as text; `<7>` for a token without text."""
        vocab = () if self.tokenizer is None else self.tokenizer.vocab_bytes
        text = b"".join(token_to_bytes(t, vocab) or f"<{t}>".encode() for t in tokens)
        return text.decode(errors="backslashreplace")


def mean_nats(documents: Sequence[ScoredDocument]) -> float:
    """Nats per weighted target; 0 if no target has a weight."""
    total = sum(float(document.weights.sum()) for document in documents)
    nats = sum(float((doc.nats * doc.weights).sum()) for doc in documents)
    return nats / total if total else 0.0


def inspect_step(recorded: RecordedRun, step: int) -> BatchReport:
    """Scores the batch of that step with the parameters before the step.

    They are trained from the newest checkpoint. Dropout is that of the training step,
    so that the mean over tokens is the logged loss up to rounding.
    """
    state = recorded.restore_before(step)
    start = int(state.step)
    state, _ = recorded.train(state, step - 1)
    run, whole = recorded.run, recorded.load_batch(state)
    missing = sorted({*Batch._fields} - {*whole._fields})
    require(
        not missing,
        f"the tokens of {type(whole).__name__} cannot be shown: it lacks"
        f" {', '.join(missing)}.",
    )
    parts = recorded.run_by_replica(compute_token_nats, state, whole)
    nats = np.concatenate([np.asarray(part) for part in parts])
    batch, documents = jax.tree.map(np.asarray, whole), []
    for origin in run.data.locate_at(run.seed, recorded.data_step(step)):
        at = np.flatnonzero(batch.segments[origin.row] == origin.segment)
        fields = (batch.tokens, batch.targets, batch.weights, nats)
        parts = (field[origin.row][at] for field in fields)
        documents.append(ScoredDocument(origin, int(at[0]), *parts))
    metrics = recorded.train(state, step, {step})[1][step]
    is_finite = not any(isinstance(metrics[name], str) for name in FINITE_METRICS)
    cause = None if is_finite else explain_step(recorded, step)
    tokenizer = run.data.info.tokenizer
    return BatchReport(start, step, documents, metrics, tokenizer, cause)


def compute_token_nats(
    config: StepConfig, params: PyTree, batch: AnyBatch, keys: Key[Array, "B"]
) -> Float[Array, "B T"]:
    """Nats of every target, as computed by the loss of the training step.

    They are the gradient of the weighted sum with respect to the weights. So the loss
    may use microbatches and chunks, and no further logits are kept.
    """

    def total(weights: Float[Array, "B T"], batch: AnyBatch, keys: Key[Array, "B"]):
        batch = batch._replace(weights=weights)
        _, means = config.bind_loss()(config.build_model(params), batch, keys)
        require(
            "nats" in means,
            f"{type(config.loss).__name__} returns no nats of tokens: `lmx replay` has"
            " the metrics of the step.",
        )
        return means["nats"].total.sum()

    split = split_rows((batch, keys), config.microbatches)
    nats = jax.lax.map(lambda part: jax.grad(total)(part[0].weights, *part), split)
    return nats.swapaxes(0, 1).reshape(batch.tokens.shape)
