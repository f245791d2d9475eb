"""Memory of one device, by purpose."""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmx.layers.attention.inputs import make_inputs
from lmx.models.block import Block
from lmx.models.remat import Remat, apply_remat
from lmx.plan.case import Case

PROBE_LENGTH = 257  # tokens of a traced row: no other dimension has this size
LOGIT_BYTES = 2 * 4  # a float32 logit and its gradient


class SavedActivations(NamedTuple):
    """Bytes per token that one layer saves for its backward pass.

    Attributes:
        replicated: arrays as wide as the model, which `tensor` does not shard.
        sharded: heads and feed-forward channels, which it shards.
    """

    replicated: float
    sharded: float

    def count_local_bytes(self, case: Case) -> float:
        """Bytes on one device, for its tokens of a microbatch."""
        each = self.replicated + self.sharded / case.sizes["tensor"]
        return case.local_tokens * each


@lru_cache(maxsize=64)
def measure_saved(
    block: Block, width: int, dtype: jnp.dtype, remat: Remat
) -> SavedActivations:
    """What a block of stacked parameters saves under a policy, by tracing it.

    Scores of pairs of tokens are left out, as by a fused kernel.
    """
    one, two = (_trace_residuals(block, rows, width, dtype, remat) for rows in (1, 2))
    replicated = sharded = 0.0
    for less, more in zip(one, two, strict=True):
        growth = (more.size - less.size) * more.dtype.itemsize / PROBE_LENGTH
        if more.shape == (2, PROBE_LENGTH, width):
            replicated += growth
        elif more.shape.count(PROBE_LENGTH) <= 1:
            sharded += growth
    return SavedActivations(replicated, sharded)


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


def list_saved(case: Case, remat: Remat) -> list[tuple[SavedActivations, int]]:
    """What a layer of each kind saves, and the number of such layers."""
    width = case.model.embedding.shape[1]
    return [
        (measure_saved(block, width, case.compute_dtype, remat), layers)
        for block, layers in case.model.stack.kinds()
    ]


def count_gathered_bytes(case: Case) -> dict[str, float]:
    """Bytes of weights gathered for use, of each kind of layer and of the rest.

    Gathering is over axes of the batch only; `tensor` and `expert` stay sharded.
    """
    gathered: dict[str, float] = {}
    for tensor in case.tensors("params"):
        axes = tensor.gathered_axes & set(case.batch_axes)
        shards = math.prod(case.sizes[axis] for axis in axes)
        if shards > 1:
            layers = tensor.shape[0] if tensor.is_stacked else 1
            size = math.prod(tensor.local_shape) * case.compute_dtype.itemsize
            kind = tensor.layer_kind
            gathered[kind] = gathered.get(kind, 0.0) + shards * size / layers
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
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """All bytes in that phase, by purpose."""
        return self.persistent | self.phases[self.peak_phase]

    @property
    def total(self) -> float:
        """All bytes in that phase."""
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
    saved = list_saved(case, case.remat)
    recomputed = [] if case.remat == "keep_all" else list_saved(case, "keep_all")
    current = [part.count_local_bytes(case) for part, _ in recomputed]
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
            "activations": sum(n * part.count_local_bytes(case) for part, n in saved),
        },
        {
            "logits": {
                "logits": logits / split,
                "gathered weights": max(others, default=0.0),
            },
            "layer": {
                "recomputed layer": max(current, default=0.0),
                "gathered weights": 2 * max(layers, default=0.0),
            },
        },
    )
