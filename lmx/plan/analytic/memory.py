"""Bytes on one device, by what they are for."""

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

PROBE_LENGTH = 257  # tokens of a traced row: a size that no other dimension has
LOGIT_BYTES = 2 * 4  # bytes for each: float32, and its gradient


class SavedActivations(NamedTuple):
    """Bytes for each token that one layer keeps for its backward pass."""

    replicated: float  # as wide as the model: whole on every device of `tensor`
    sharded: float  # heads and feed-forward channels, which `tensor` splits

    def count_local_bytes(self, case: Case) -> float:
        """On one device, for its tokens of a microbatch."""
        return case.local_tokens * (
            self.replicated + self.sharded / case.sizes["tensor"]
        )


@lru_cache(maxsize=64)
def measure_saved(
    block: Block, width: int, dtype: jnp.dtype, remat: Remat
) -> SavedActivations:
    """What a block of stacked parameters keeps under a policy, by tracing it.

    Scores of pairs of tokens are left out, as by a fused kernel.
    """
    one, two = (_trace_residuals(block, rows, width, dtype, remat) for rows in (1, 2))
    stream = inner = 0.0
    for less, more in zip(one, two, strict=True):
        grown = (more.size - less.size) * more.dtype.itemsize / PROBE_LENGTH
        if more.shape.count(PROBE_LENGTH) > 1:
            continue
        if more.shape == (2, PROBE_LENGTH, width):
            stream += grown
        else:
            inner += grown
    return SavedActivations(stream, inner)


def _trace_residuals(
    block: Block, rows: int, width: int, dtype: jnp.dtype, remat: Remat
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of what goes from a layer's forward pass to its backward pass."""
    graph, stacked = nnx.split(block)
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), stacked)
    tokens = jax.ShapeDtypeStruct((rows, PROBE_LENGTH), "int32")
    x_BTD = jax.ShapeDtypeStruct((rows, PROBE_LENGTH, width), dtype)

    def backward(tokens: Any, params: Any, x: Any) -> Any:
        context = make_inputs(tokens, None, None, None)

        def run(_: int, params: Any, x: Any) -> Any:
            return nnx.merge(graph, params)(x, context, None)[0]

        return jax.vjp(partial(apply_remat(run, remat), 0), params, x)[1]

    return jax.tree.leaves(jax.eval_shape(backward, tokens, one, x_BTD))


def list_saved(case: Case, remat: Remat) -> list[tuple[SavedActivations, int]]:
    """What a layer of each kind keeps, and how many there are of the kind."""
    width, dtype = case.model.embedding.shape[1], case.compute_dtype
    return [
        (measure_saved(block, width, dtype, remat), count)
        for block, count in case.model.stack.kinds()
    ]


def count_gathered_bytes(case: Case) -> dict[str, float]:
    """Bytes of weights once gathered for use, of each kind of layer and of the rest.

    Only of those that an axis of the batch splits; `tensor` and `expert` stay so.
    """
    whole: dict[str, float] = {}
    for tensor in case.tensors("params"):
        split = math.prod(
            case.sizes[a] for a in tensor.gathered_axes & set(case.batch_axes)
        )
        if split > 1:
            layers = tensor.shape[0] if tensor.is_stacked else 1
            each = (
                split
                * math.prod(tensor.local_shape)
                * case.compute_dtype.itemsize
                / layers
            )
            whole[tensor.layer_kind] = whole.get(tensor.layer_kind, 0.0) + each
    return whole


class MemoryUse(NamedTuple):
    """Bytes on one device.

    Attributes:
        always: parameters, gradients, and all else that stays throughout.
        moments: what comes on top, by the moment of the step.
    """

    persistent: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak_phase(self) -> str:
        """The moment that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """What is held at that moment."""
        return self.persistent | self.phases[self.peak_phase]

    @property
    def total(self) -> float:
        """All that is held at that moment."""
        return sum(self.parts.values())


def estimate_memory(case: Case) -> MemoryUse:
    """Bytes on one device, at the logits and in the backward pass of a layer.

    Activations are those of one microbatch: what all layers keep under the policy, and
    what the layer at hand computes again. Accumulation holds a second set of
    gradients. Weights are gathered for the layer at hand and for the next.
    """
    params = sum((tensor.local_bytes for tensor in case.tensors("params")), 0.0)
    kept = list_saved(case, case.remat)
    again = [] if case.remat == "keep_all" else list_saved(case, "keep_all")
    at_hand = max((part.count_local_bytes(case) for part, _ in again), default=0.0)
    whole = count_gathered_bytes(case)
    head = {name: size for name, size in whole.items() if "." not in name}
    deep = {name: size for name, size in whole.items() if name not in head}
    split = case.sizes["tensor"] if "tensor" in case.rules.get("vocab", ()) else 1
    return MemoryUse(
        {
            "parameters": params,
            "optimizer state": sum(
                (tensor.local_bytes for tensor in case.tensors("opt_state")), 0.0
            ),
            "gradients": params * (2 if case.microbatches > 1 else 1),
            "activations": sum(
                count * part.count_local_bytes(case) for part, count in kept
            ),
        },
        {
            "logits": {
                "logits": case.local_tokens
                * case.logit_fraction
                * case.model.vocab
                * LOGIT_BYTES
                / split,
                "gathered weights": max(head.values(), default=0.0),
            },
            "layer": {
                "layer at hand": at_hand,
                "gathered weights": 2 * max(deep.values(), default=0.0),
            },
        },
    )
