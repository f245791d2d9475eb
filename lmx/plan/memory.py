"""Memory of one device, by purpose."""

import math
from collections import defaultdict
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmx.layers.attention.kv_cache import make_inputs
from lmx.layers.attention.ring import RingAttention
from lmx.layers.moe.dispatch import DroplessDispatch
from lmx.layers.moe.moe import MoE
from lmx.models.block import Block
from lmx.models.remat import Remat, apply_remat
from lmx.plan.case import PARTS, WEIGHTS, Case

PROBE_LENGTH = 257  # tokens of a traced row: no other dimension has this size
LOGIT_BYTES = 2 * 4  # a float32 logit and its gradient
# Logits of attention, their softmax, and the gradients of both.
PAIR_BYTES = 4 * 4


@lru_cache(maxsize=64)
def measure_saved(
    block: Block, width: int, dtype: jnp.dtype, remat: Remat
) -> tuple[float, float, float]:
    """Bytes that a block of stacked parameters saves for its backward pass.

    The first are per token, of arrays as wide as the model; the second per token, of
    heads and feed-forward channels, and the third per pair of tokens, of all heads:
    `tensor` shards both.
    """
    one, two = (_trace_residuals(block, rows, width, dtype, remat) for rows in (1, 2))
    replicated = sharded = 0.0
    pairs: defaultdict[Any, list[float]] = defaultdict(list)
    for less, more in zip(one, two, strict=True):
        growth = (more.size - less.size) * more.dtype.itemsize / PROBE_LENGTH
        if more.shape == (2, PROBE_LENGTH, width):
            replicated += growth
        elif more.shape.count(PROBE_LENGTH) <= 1:
            sharded += growth
        elif more.dtype != bool:  # masks are computed again
            pairs[more.shape, more.dtype].append(growth / PROBE_LENGTH)
    # A softmax saves its result twice, and the compiler keeps one.
    distinct = (sum(sizes[1:]) or sizes[0] for sizes in pairs.values())
    return replicated, sharded, sum(distinct, 0.0)


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
            return _replace_kernels(nnx.merge(graph, params))(x, inputs, None)[0]

        return jax.vjp(partial(apply_remat(run, remat), 0), params, x)[1]

    return jax.tree.leaves(jax.eval_shape(backward, tokens, one, x_BTD))


def _replace_kernels(block: Block) -> Block:
    """The block with portable code that saves the same in place of kernels."""
    if block.attention.backend.platforms:
        block.attention.backend = RingAttention()
    if isinstance(block.mlp, MoE) and isinstance(block.mlp.dispatch, DroplessDispatch):
        block.mlp.dispatch = DroplessDispatch()
    return block


class LayerBytes(NamedTuple):
    """Bytes on one device of each layer of a kind.

    Attributes:
        tokens: saved for the backward pass, per token.
        pairs: likewise, per pair of tokens.
        logits: of attention, in the backward pass: four arrays, less one that is saved.
        layers: how many there are.
    """

    tokens: float
    pairs: float
    logits: float
    layers: int


def measure_layers(case: Case, remat: Remat) -> list[LayerBytes]:
    """Every kind of layer under a remat policy."""
    width, tensor = case.model.embedding.shape[1], case.sizes["tensor"]
    queries, keys = case.local_length, case.sequence_length
    measured = []
    for block, layers in case.model.stack.kinds():
        dtype = case.storage_dtype
        replicated, sharded, pairs = measure_saved(block, width, dtype, remat)
        pairs *= case.local_tokens * keys / tensor
        held = block.attention.backend.count_pairs(queries, keys) / queries
        logits = case.local_tokens * held * block.attention.heads * PAIR_BYTES / tensor
        measured.append(
            LayerBytes(
                case.local_tokens * (replicated + sharded / tensor),
                pairs,
                logits * (0.75 if pairs and remat == "keep_all" else 1.0),
                layers,
            )
        )
    return measured


def count_gathered_bytes(case: Case) -> dict[str, float]:
    """Bytes of weights gathered for use, of each kind of layer and of the rest.

    Gathering is over axes of the batch only; `tensor` and `expert` stay sharded.
    """
    gathered: defaultdict[str, float] = defaultdict(float)
    for tensor in case.tensors(*WEIGHTS):
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
    params, state, *frozen = (
        sum((tensor.local_bytes for tensor in case.tensors(part)), 0.0)
        for part in PARTS
    )
    layers = measure_layers(case, case.remat)
    recomputed = [] if case.remat == "keep_all" else measure_layers(case, "keep_all")
    gathered = count_gathered_bytes(case)
    of_layers = [size for name, size in gathered.items() if "." in name]
    others = [size for name, size in gathered.items() if "." not in name]
    logits = case.local_tokens * case.logit_fraction * case.model.vocab * LOGIT_BYTES
    split = case.sizes["tensor"] if "tensor" in case.rules.get("vocab", ()) else 1
    return MemoryUse(
        {
            "parameters": params,
            "optimizer state": state,
            "frozen": sum(frozen),
            "gradients": params * (2 if case.microbatches > 1 else 1),
            "activations": sum((e.tokens + e.pairs) * e.layers for e in layers),
        },
        {
            "logits": {
                "logits": logits / split,
                "gathered weights": max(others, default=0.0),
            },
            "layer": {
                "recomputed layer": max((e.tokens for e in recomputed), default=0.0),
                "attention logits": max(e.logits for e in layers),
                "gathered weights": 2 * max(of_layers, default=0.0),
            },
        },
    )
