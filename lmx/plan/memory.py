"""Memory of one device, by purpose."""

import math
from collections import defaultdict
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmx.layers.attention.kv_cache import make_inputs
from lmx.models.block import Block
from lmx.models.remat import Remat, apply_remat
from lmx.plan.case import Case

PROBE_LENGTH = 257  # tokens of a traced row: no other dimension has this size
LOGIT_BYTES = 2 * 4  # a float32 logit and its gradient


@lru_cache(maxsize=64)
def measure_saved(
    block: Block, width: int, dtype: jnp.dtype, remat: Remat
) -> tuple[float, float]:
    """Bytes per token that a block of stacked parameters saves for its backward pass.

    The first are of arrays as wide as the model, the second of heads and feed-forward
    channels, which `tensor` shards. Scores of pairs of tokens are left out, as by a
    fused kernel.
    """
    one, two = (_trace_residuals(block, rows, width, dtype, remat) for rows in (1, 2))
    replicated = sharded = 0.0
    for less, more in zip(one, two, strict=True):
        growth = (more.size - less.size) * more.dtype.itemsize / PROBE_LENGTH
        if more.shape == (2, PROBE_LENGTH, width):
            replicated += growth
        elif more.shape.count(PROBE_LENGTH) <= 1:
            sharded += growth
    return replicated, sharded


def _trace_residuals(
    block: Block, rows: int, width: int, dtype: jnp.dtype, remat: Remat
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of what a layer's forward pass saves for its backward pass."""
    graph, stacked = nnx.split(block)
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), stacked)
    tokens = jax.ShapeDtypeStruct((rows, PROBE_LENGTH), "int32")
    x_BTD = jax.ShapeDtypeStruct((rows, PROBE_LENGTH, width), dtype)

    def backward(tokens: Any, params: Any, x: Any) -> Any:
        inputs = make_inputs(tokens, None, None, None)

        def run(_: int, params: Any, x: Any) -> Any:
            return nnx.merge(graph, params)(x, inputs, None)[0]

        return jax.vjp(partial(apply_remat(run, remat), 0), params, x)[1]

    return jax.tree.leaves(jax.eval_shape(backward, tokens, one, x_BTD))


def list_saved(case: Case, remat: Remat) -> list[tuple[float, int]]:
    """Bytes that a layer saves on one device, and the number of layers, by kind."""
    width, saved = case.model.embedding.shape[1], []
    for block, layers in case.model.stack.kinds():
        parts = measure_saved(block, width, case.compute_dtype, remat)
        each = parts[0] + parts[1] / case.sizes["tensor"]
        saved.append((case.local_tokens * each, layers))
    return saved


def count_gathered_bytes(case: Case) -> dict[str, float]:
    """Bytes of weights gathered for use, of each kind of layer and of the rest.

    Gathering is over axes of the batch only; `tensor` and `expert` stay sharded.
    """
    gathered: defaultdict[str, float] = defaultdict(float)
    for tensor in case.tensors("params"):
        axes = tensor.gathered_axes & set(case.batch_axes)
        shards = math.prod(case.sizes[axis] for axis in axes)
        if shards > 1:
            layers = tensor.shape[0] if tensor.is_stacked else 1
            size = tensor.local_size * case.compute_dtype.itemsize
            gathered[tensor.layer_kind] += shards * size / layers
    return gathered


class MemoryUse(NamedTuple):
    """Bytes on one device.

    Attributes:
        persistent: parameters, gradients, and all else that stays for the whole step.
        phases: what is added in each phase of the step.
    """

    persistent: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def parts(self) -> dict[str, float]:
        """All bytes in the largest phase, by purpose."""
        largest = max(self.phases.values(), key=lambda phase: sum(phase.values()))
        return self.persistent | largest

    @property
    def total(self) -> float:
        """All bytes in the largest phase."""
        return sum(self.parts.values())


def estimate_memory(case: Case) -> MemoryUse:
    """Bytes on one device, at the logits and in the backward pass of a layer.

    Activations are those of one microbatch: what all layers save under the policy, and
    what the current layer recomputes. Accumulation needs a second set of gradients.
    Weights are gathered for the current layer and for the next.
    """
    params, state = (
        sum((tensor.local_bytes for tensor in case.tensors(part)), 0.0)
        for part in ("params", "opt_state")
    )
    recomputed = [] if case.remat == "keep_all" else list_saved(case, "keep_all")
    gathered = count_gathered_bytes(case)
    layers = [size for name, size in gathered.items() if "." in name]
    others = [size for name, size in gathered.items() if "." not in name]
    logits = case.local_tokens * case.logit_fraction * case.model.vocab * LOGIT_BYTES
    split = case.sizes["tensor"] if "tensor" in case.rules.get("vocab", ()) else 1
    return MemoryUse(
        {
            "parameters": params,
            "optimizer state": state,
            "gradients": params * (2 if case.microbatches > 1 else 1),
            "activations": sum(size * n for size, n in list_saved(case, case.remat)),
        },
        {
            "logits": {
                "logits": logits / split,
                "gathered weights": max(others, default=0.0),
            },
            "layer": {
                "recomputed layer": max((size for size, _ in recomputed), default=0.0),
                "gathered weights": 2 * max(layers, default=0.0),
            },
        },
    )
