"""Communication between devices in a step, by kind of collective."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
from flax import nnx

from lmx.core.sharding import is_variable
from lmx.plan.case import Case, PlannedTensor


class Collective(NamedTuple):
    """All collectives of one kind over one axis, in one step.

    Attributes:
        bytes: sent by each device.
        seconds: their time on idle links.
        overlapped: whether other work runs at the same time.
    """

    kind: str
    axis: str
    payload: str
    bytes: float
    seconds: float
    overlapped: bool


def list_collectives(case: Case) -> list[Collective]:
    """Every kind that the sharding rules need, for axes longer than one."""
    return [*_list_for_weights(case), *_list_for_activations(case)]


def _list_for_weights(case: Case) -> Iterator[Collective]:
    """Two gathers of weights and one reduction of gradients per microbatch.

    All in the compute dtype. Gradients are reduced in full over an axis of the batch
    that does not shard a weight; on TPUs over all axes, exposed: libtpu 0.0.42 compiles
    them so for v5e and v5p.
    """
    tensors, steps = case.tensors("params"), case.microbatches
    on_tpu = case.machine.topology is not None
    for axis in case.batch_axes:
        sharded = [tensor for tensor in tensors if axis in tensor.gathered_axes]
        size = steps * sum((_gather(case, t, axis) for t in sharded), 0.0)
        if sharded:
            yield _estimate(case, "all-gather", axis, "weights", 2 * size)
        if sharded and on_tpu:
            yield _estimate(
                case, "all-reduce", axis, "gradients", 2 * size, overlapped=False
            )
        elif sharded:
            yield _estimate(case, "reduce-scatter", axis, "gradients", size)
        rest = [tensor for tensor in tensors if axis not in tensor.mesh_axes]
        size = 2 * steps * sum((_count_local_bytes(case, t) for t in rest), 0.0)
        if rest:
            yield _estimate(
                case, "all-reduce", axis, "gradients", size, overlapped=not on_tpu
            )


def _list_for_activations(case: Case) -> Iterator[Collective]:
    """Partial sums over `tensor`, and the exchange of tokens over `expert`.

    Attention and feed-forward layers are summed once forward, once backward, and once
    more if the forward pass is recomputed; so are experts, unless `expert` shards rows:
    then each token is sent there and back for each of its experts.
    """
    passes = 3 if case.remat == "keep_none" else 2
    tokens, width = case.local_tokens * case.microbatches, case.model.embedding.shape[1]
    for axis in ("tensor", "expert"):
        if case.sizes[axis] == 1:
            continue
        kind, payload, times = "all-reduce", "activations", _count_sums(case, axis)
        if axis in case.batch_axes:
            kind, payload, times = "all-to-all", "tokens", count_expert_visits(case)
        size = 2 * passes * float(tokens * width * case.compute_dtype.itemsize) * times
        yield _estimate(case, kind, axis, payload, size, overlapped=False)


def _count_sums(case: Case, axis: str) -> int:
    """The number of layer outputs that are summed over an axis."""
    tensors = [
        t for t in case.tensors("params") if t.is_stacked and axis in t.mesh_axes
    ]
    parts = {(t.layer_kind, t.name.split(".")[5]): t.shape[0] for t in tensors}
    return sum(parts.values())


def count_expert_visits(case: Case) -> float:
    """The number of experts that process a token, in all layers."""

    def count_experts(block: nnx.Module) -> int:
        leaves = jax.tree.leaves(block, is_leaf=is_variable)
        sizes = [dict(zip(leaf.axes, leaf.shape, strict=True)) for leaf in leaves]
        return max(size.get("experts", 0) for size in sizes)

    blocks = case.model.stack.kinds()
    return sum(
        (n * block.mlp.active_fraction * count_experts(block) for block, n in blocks),
        0.0,
    )


def _gather(case: Case, tensor: PlannedTensor, axis: str) -> float:
    """Bytes of a weight once gathered over an axis and all faster ones."""
    names = list(case.sizes)
    axes = tensor.gathered_axes & set(case.batch_axes) & set(names[names.index(axis) :])
    return math.prod(case.sizes[a] for a in axes) * _count_local_bytes(case, tensor)


def _count_local_bytes(case: Case, tensor: PlannedTensor) -> float:
    """Bytes on one device, in the compute dtype."""
    return math.prod(tensor.local_shape) * float(case.compute_dtype.itemsize)


def _estimate(
    case: Case, kind: str, axis: str, payload: str, size: float, *, overlapped=True
) -> Collective:
    """A collective that takes as long as gathers of `size` bytes in all."""
    count, names = case.sizes[axis], list(case.sizes)
    stride = math.prod(case.sizes[name] for name in names[names.index(axis) + 1 :])
    seconds = case.machine.estimate_gather(size, count, stride)
    return Collective(kind, axis, payload, size * (1 - 1 / count), seconds, overlapped)
