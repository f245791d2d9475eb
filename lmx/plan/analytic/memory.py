"""Bytes on one device, by what they are for."""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmx.layers.attention.context import reading
from lmx.models.block import Block
from lmx.models.remat import Remat, rematerialised
from lmx.plan.case import Case

PROBE = 257  # tokens of a traced row: a size that no other dimension has
LOGITS = 2 * 4  # bytes for each: float32, and its gradient


class Saved(NamedTuple):
    """Bytes for each token that one layer keeps for its backward pass."""

    stream: float  # as wide as the model: whole on every device of `tensor`
    inner: float  # heads and feed-forward channels, which `tensor` splits

    def local(self, case: Case) -> float:
        """On one device, for its tokens of a microbatch."""
        return case.at_once * (self.stream + self.inner / case.sizes["tensor"])


@lru_cache(maxsize=64)
def saved(block: Block, width: int, dtype: jnp.dtype, remat: Remat) -> Saved:
    """What a block of stacked parameters keeps under a policy, by tracing it.

    Scores of pairs of tokens are left out, as by a fused kernel.
    """
    one, two = (_residuals(block, rows, width, dtype, remat) for rows in (1, 2))
    stream = inner = 0.0
    for less, more in zip(one, two, strict=True):
        grown = (more.size - less.size) * more.dtype.itemsize / PROBE
        if more.shape.count(PROBE) > 1:
            continue
        if more.shape == (2, PROBE, width):
            stream += grown
        else:
            inner += grown
    return Saved(stream, inner)


def _residuals(
    block: Block, rows: int, width: int, dtype: jnp.dtype, remat: Remat
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of what goes from a layer's forward pass to its backward pass."""
    graph, stacked = nnx.split(block)
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), stacked)
    tokens = jax.ShapeDtypeStruct((rows, PROBE), "int32")
    x_BTD = jax.ShapeDtypeStruct((rows, PROBE, width), dtype)

    def backward(tokens: Any, params: Any, x: Any) -> Any:
        context = reading(tokens, None, None, None)

        def run(_: int, params: Any, x: Any) -> Any:
            return nnx.merge(graph, params)(x, context, None)[0]

        return jax.vjp(partial(rematerialised(run, remat), 0), params, x)[1]

    return jax.tree.leaves(jax.eval_shape(backward, tokens, one, x_BTD))


def layers(case: Case, remat: Remat) -> list[tuple[Saved, int]]:
    """What a layer of each kind keeps, and how many there are of the kind."""
    width, dtype = case.model.table.shape[1], case.compute
    return [
        (saved(block, width, dtype, remat), count)
        for block, count in case.model.stack.all()
    ]


def gathered(case: Case) -> dict[str, float]:
    """Bytes of weights once gathered for use, of each kind of layer and of the rest.

    Only of those that an axis of the batch splits; `tensor` and `expert` stay so.
    """
    whole: dict[str, float] = {}
    for tensor in case.tensors("params"):
        split = math.prod(case.sizes[a] for a in tensor.gathered & set(case.batch_axes))
        if split > 1:
            layers = tensor.shape[0] if tensor.stacked else 1
            each = split * math.prod(tensor.share) * case.compute.itemsize / layers
            whole[tensor.layer] = whole.get(tensor.layer, 0.0) + each
    return whole


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        always: parameters, gradients, and all else that stays throughout.
        moments: what comes on top, by the moment of the step.
    """

    always: dict[str, float]
    moments: dict[str, dict[str, float]]

    @property
    def fullest(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """What is held at that moment."""
        return self.always | self.moments[self.fullest]

    @property
    def total(self) -> float:
        """All that is held at that moment."""
        return sum(self.parts.values())


def needed(case: Case) -> Memory:
    """Bytes on one device, at the logits and in the backward pass of a layer.

    Activations are those of one microbatch: what all layers keep under the policy, and
    what the layer at hand computes again. Accumulation holds a second set of
    gradients. Weights are gathered for the layer at hand and for the next.
    """
    params = sum((tensor.local for tensor in case.tensors("params")), 0.0)
    kept = layers(case, case.remat)
    again = [] if case.remat == "keep_all" else layers(case, "keep_all")
    at_hand = max((part.local(case) for part, _ in again), default=0.0)
    whole = gathered(case)
    head = {name: size for name, size in whole.items() if "." not in name}
    deep = {name: size for name, size in whole.items() if name not in head}
    split = case.sizes["tensor"] if "tensor" in case.rules.get("vocab", ()) else 1
    return Memory(
        {
            "parameters": params,
            "optimizer state": sum(
                (tensor.local for tensor in case.tensors("opt_state")), 0.0
            ),
            "gradients": params * (2 if case.microbatches > 1 else 1),
            "activations": sum(count * part.local(case) for part, count in kept),
        },
        {
            "logits": {
                "logits": case.at_once
                * case.scored
                * case.model.vocab
                * LOGITS
                / split,
                "gathered weights": max(head.values(), default=0.0),
            },
            "layer": {
                "layer at hand": at_hand,
                "gathered weights": 2 * max(deep.values(), default=0.0),
            },
        },
    )
