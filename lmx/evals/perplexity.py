"""How well a model predicts text that it has not seen."""

import lzma
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int, PyTree
from tqdm import tqdm

from lmx.config.names import configurable
from lmx.data.batches import Batch, Source, Tokens
from lmx.train.hooks.periodic import Due, Periodic, due
from lmx.train.loss.next_token import measured
from lmx.train.record.directory import Directory
from lmx.train.run import Run, rows_sharding, shaped
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Evaluate(Periodic):
    """Loss on held-out data: nats per token, perplexity, and bits per byte of text.

    Attributes:
        data: what is evaluated; its order should be `@InOrder()`.
        every: steps between evaluations; there is one at the end in any case.
        batches: how many at each evaluation but the last, which takes all; None: all.
        name: what the metrics are called, as in `validation/nats`.
    """

    data: Source
    every: int = 1000
    batches: int | None = None
    name: str = "validation"

    def start(self, run: Run) -> Callable[[Directory], Due]:
        data = self.data.open()
        is_due = due(self.every, run.steps)
        score = jax.jit(partial(score_batch, run.graph))
        sizes = data.token_bytes
        batch = shaped(data)
        rows_sharding(batch, run.mesh, run.rules)  # a refusal now, not at the first
        jax.eval_shape(score, run.like().params, batch, sizes)

        def evaluate(directory: Directory) -> Due:
            def hook(done: int, state: TrainState, metrics: Metrics) -> None:
                del metrics
                every = data.steps or 1
                few = every if done == run.steps else self.batches or every
                total = measure(
                    lambda batch: score(state.params, batch, sizes),
                    partial(run.read, data, 0),
                    min(every, few),
                    self.name,
                )
                found = numbers(total)
                directory.log(done, {f"{self.name}/{k}": v for k, v in found.items()})

            return Due(is_due, hook)

        return evaluate


def measure(
    score: Callable[[Batch], tuple[Array, Array, Array]],
    batch_at: Callable[[int], Batch],
    count: int,
    name: str,
) -> Float64[np.ndarray, "3"]:
    """What `score_batch` finds in the first `count` batches, in total."""
    total = np.zeros(3)
    for index in tqdm(range(count), desc=name, leave=False, disable=None):
        total += [float(part) for part in score(batch_at(index))]
    return total


def numbers(total: Float64[np.ndarray, "3"]) -> dict[str, float]:
    """Nats per token, perplexity and bits per byte, of nats, tokens and bytes."""
    nats, tokens, size = map(float, total)
    found = {
        "nats": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "tokens": tokens,
    }
    if size:
        found |= {"bits_per_byte": nats / math.log(2) / size, "bytes": size}
    return found


def score_batch(
    graph: nnx.GraphDef,
    params: PyTree,
    batch: Batch,
    token_bytes: Int[Array, "V"] | None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Nats, targets and UTF-8 bytes of a batch, each in total."""
    logits_BTV, _ = nnx.merge(graph, params).forward(
        batch.tokens, batch.positions, batch.segments
    )
    nats, _ = measured(logits_BTV, batch)
    size = jnp.zeros(())
    if token_bytes is not None:
        size = jnp.sum(token_bytes[batch.targets] * batch.weights)
    return nats.total, nats.weight, size


@configurable
@dataclass(frozen=True, kw_only=True)
class Compressors(Periodic):
    """What zlib and xz make of the same text, in bits per byte, for comparison."""

    data: Tokens
    name: str = "validation"

    def start(self, run: Run) -> Callable[[Directory], Due]:
        text = "".join(
            document.text for document in self.data.corpus.documents(self.data.split)
        ).encode()

        def compressors(directory: Directory) -> Due:
            def hook(done: int, state: TrainState, metrics: Metrics) -> None:
                del state, metrics
                found = compressed(text).items()
                directory.log(done, {f"{self.name}/{k}": v for k, v in found})

            return Due(lambda done: done == run.steps, hook)

        return compressors


def compressed(text: bytes) -> dict[str, float]:
    """Bits per byte of zlib and xz, each at its best level, on the text as a whole."""
    sizes = {
        "zlib": len(zlib.compress(text, 9)),
        "xz": len(lzma.compress(text, preset=9)),
    }
    return {f"{name}_bits_per_byte": 8 * n / len(text) for name, n in sizes.items()}
