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

from lmx.config.registry import configurable
from lmx.core.batch import Batch
from lmx.data.dataset import DatasetConfig
from lmx.data.text_dataset import TextDataset
from lmx.run.run_dir import Values
from lmx.train.hook import Hook, HookConfig, every_steps
from lmx.train.loss.next_token import sum_cross_entropy
from lmx.train.program import RunContext, abstract_batch, batch_sharding
from lmx.train.step import Metrics, TrainState


@configurable
@dataclass(frozen=True, kw_only=True)
class Evaluate(HookConfig):
    """Loss on held-out data: nats per token, perplexity, and bits per byte of text.

    Attributes:
        data: what is evaluated; its order should be `@Sequential()`.
        every: steps between evaluations; there is one at the end in any case.
        batches: how many at each evaluation but the last, which takes all; None: all.
        name: what the metrics are called, as in `validation/nats`.
    """

    data: DatasetConfig
    every: int = 1000
    batches: int | None = None
    name: str = "validation"

    def build(self, run: RunContext) -> Hook:
        data = self.data.open()
        score = jax.jit(partial(score_batch, run.graph))
        sizes = data.info.token_bytes
        batch = abstract_batch(data)
        # Fails now, not at the first evaluation.
        batch_sharding(batch.tokens.shape, run.mesh, run.rules)
        jax.eval_shape(score, run.abstract_state().params, batch, sizes)

        def evaluate(step: int, state: TrainState, metrics: Metrics) -> Values:
            del metrics
            count = data.info.steps or 1
            if step != run.steps:
                count = min(count, self.batches or count)
            total = score_batches(
                lambda batch: score(state.params, batch, sizes),
                partial(run.load_batch, data, 0),
                count,
                self.name,
            )
            return {f"{self.name}/{k}": v for k, v in summarize(total).items()}

        return Hook(call=evaluate, is_due=every_steps(self.every, run.steps))


def score_batches(
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


def summarize(total: Float64[np.ndarray, "3"]) -> dict[str, float]:
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
    nats, _ = sum_cross_entropy(logits_BTV, batch)
    size = jnp.zeros(())
    if token_bytes is not None:
        size = jnp.sum(token_bytes[batch.targets] * batch.weights)
    return nats.total, nats.weight, size


@configurable
@dataclass(frozen=True, kw_only=True)
class CompressionBaseline(HookConfig):
    """What zlib and xz make of the same text, in bits per byte, for comparison."""

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
    """Bits per byte of zlib and xz, each at its best level, on the text as a whole."""
    sizes = {
        "zlib": len(zlib.compress(text, 9)),
        "xz": len(lzma.compress(text, preset=9)),
    }
    return {f"{name}_bits_per_byte": 8 * n / len(text) for name, n in sizes.items()}
