"""Perplexity and bits per byte of held-out text."""

import lzma
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float64, Int, PyTree
from tqdm import tqdm

from lmx.config.registry import Positive, configurable, require
from lmx.core.batch import AnyBatch, Batch
from lmx.data.dataset import Dataset, DatasetConfig, refuse_rollouts
from lmx.data.text_dataset import TextDataset
from lmx.models.trained_model import TrainedModel
from lmx.run.run_dir import Values
from lmx.train.checkpoint.restore import restore
from lmx.train.hook import Hook, HookConfig, every_steps
from lmx.train.program import (
    RunContext,
    abstract_batch,
    batch_shardings,
    check_vocab,
)
from lmx.train.step import Metrics, TrainState

RowSums = tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]


@configurable
@dataclass(frozen=True, kw_only=True)
class Evaluate(HookConfig):
    """Loss on held-out data: nats per token, perplexity, and bits per byte of text.

    Attributes:
        data: the dataset; its order should be `@Sequential()`.
        every: steps between evaluations; the last step is always evaluated.
        batches: number of batches of each evaluation but the last, which uses all;
            None: all. Data without a fixed pass need a number, also for the last.
        name: prefix of the metrics, as in `validation/nats`.
    """

    data: DatasetConfig
    every: Positive[int] = 1000
    batches: Positive[int | None] = None
    name: str = "validation"

    def build(self, run: RunContext) -> Hook:
        data = self.data.open()
        score = make_scorer(run, data)
        whole = count_batches(data, self.batches, f"of {self.name!r}")

        def evaluate(step: int, state: TrainState, metrics: Metrics) -> Values:
            del metrics
            count = whole if step == run.steps else min(whole, self.batches or whole)
            batch_at = partial(run.load_batch, data, 0)
            sums = score_batches(
                partial(score, state.all_params), batch_at, count, self.name
            )
            values = summarize(sums.sum(axis=1))
            return {f"{self.name}/{k}": v for k, v in values.items()}

        return Hook(call=evaluate, is_due=every_steps(self.every, run.steps))


def count_batches(data: Dataset, batches: int | None, name: str) -> int:
    """The batches of a pass, or for data without a fixed pass the given number.

    Raises ConfigError if there is none, or no target in them.
    """
    count = data.info.steps or batches or 0
    require(count, f"the data {name} have no fixed pass: set Evaluate.batches.")
    requests = (data.info.schedule.request(0, n, slice(None)) for n in range(count))
    require(
        any(np.any(data.read(request).weights) for request in requests),
        f"the data {name} have no target, so that no mean exists: use longer documents,"
        " or a larger part of the data.",
    )
    return count


def evaluate(
    run: str | Path | TrainedModel, data: DatasetConfig, batches: int | None = None
) -> dict[str, float]:
    """Nats per token, perplexity, and bits per byte of text, of a trained model.

    In all batches, or the first so many; data without a fixed pass need a number.
    """
    trained, dataset = restore(run), data.open()
    refuse_rollouts(dataset, "an evaluation")
    check_vocab(dataset.info, trained.model)
    whole = count_batches(dataset, batches, "given to `evaluate`")
    score = jax.jit(partial(score_rows, trained.graph))
    sums = score_batches(
        lambda batch: score(trained.params, batch, dataset.info.token_bytes),
        partial(dataset.batch_at, 0),
        min(whole, batches or whole),
        "evaluate",
    )
    return summarize(sums.sum(axis=1))


def make_scorer(
    run: RunContext, data: Dataset
) -> Callable[[PyTree, AnyBatch], RowSums]:
    """Compiles `score_rows` for a run, and checks the vocabulary and the batch size."""
    refuse_rollouts(data, "an evaluation")
    check_vocab(data.info, run.model)
    every_process = NamedSharding(run.mesh, PartitionSpec())
    score = jax.jit(partial(score_rows, run.graph), out_shardings=every_process)
    batch, token_bytes = abstract_batch(data), data.info.token_bytes
    missing = sorted({*Batch._fields} - {*batch._fields})
    require(
        not missing,
        f"the perplexity of {type(batch).__name__} is not defined: it lacks"
        f" {', '.join(missing)}. Evaluate other data.",
    )
    batch_shardings(batch, run.mesh, run.rules)
    jax.eval_shape(score, run.abstract_state().all_params, batch, token_bytes)
    return lambda params, batch: score(params, batch, token_bytes)


def score_rows(
    graph: nnx.GraphDef,
    params: PyTree,
    batch: AnyBatch,
    token_bytes: Int[Array, "V"] | None = None,
) -> RowSums:
    """Nats, weights and UTF-8 bytes of the targets, summed over each row."""
    model = nnx.merge(graph, params)
    logits_BTV = model(batch.tokens, batch.positions, batch.segments)
    target_BT1 = jnp.take_along_axis(logits_BTV, batch.targets[:, :, None], axis=-1)
    nats_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT1[:, :, 0]
    weights_BT = batch.weights.astype(nats_BT.dtype)
    bytes_BT = 0 if token_bytes is None else token_bytes[batch.targets]
    nats_B, weights_B, bytes_B = (
        (x * weights_BT).sum(axis=1) for x in (nats_BT, 1, bytes_BT)
    )
    return nats_B, weights_B, bytes_B


def score_batches(
    score: Callable[[AnyBatch], RowSums],
    batch_at: Callable[[int], AnyBatch],
    count: int,
    name: str,
) -> Float64[np.ndarray, "3 M"]:
    """Nats, weights and bytes of all rows in the first batches."""
    steps = tqdm(range(count), desc=name, leave=False, disable=None)
    parts = [np.asarray(score(batch_at(step)), np.float64) for step in steps]
    return np.concatenate(parts, axis=1)


def summarize(total: Float64[np.ndarray, "3"]) -> dict[str, float]:
    """Nats per token, perplexity and bits per byte, from nats, tokens and bytes."""
    nats, tokens, size = map(float, total)
    values = {
        "nats": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "tokens": tokens,
    }
    if size:
        values |= {"bits_per_byte": nats / math.log(2) / size, "bytes": size}
    return values


@configurable
@dataclass(frozen=True, kw_only=True)
class CompressionBaseline(HookConfig):
    """Bits per byte of zlib and xz on the same text, for comparison."""

    data: TextDataset
    name: str = "validation"

    def build(self, run: RunContext) -> Hook:
        documents = self.data.corpus.read_nonempty(self.data.split)
        text = "".join(document.text for document in documents).encode()

        def compress(step: int, state: TrainState, metrics: Metrics) -> Values:
            del step, state, metrics
            sizes = measure_compression(text)
            return {f"{self.name}/{k}": v for k, v in sizes.items()}

        return Hook(call=compress, is_due=lambda step: step == run.steps)


def measure_compression(text: bytes) -> dict[str, float]:
    """Bits per byte of zlib and xz at their highest levels, on the whole text."""
    sizes = {
        "zlib": len(zlib.compress(text, 9)),
        "xz": len(lzma.compress(text, preset=9)),
    }
    return {f"{name}_bits_per_byte": 8 * n / len(text) for name, n in sizes.items()}
