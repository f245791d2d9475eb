"""What devices tell one another in a step, by kind of collective."""

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
        seconds: that they take on idle links.
        hidden: whether other work can go on meanwhile.
    """

    kind: str
    axis: str
    payload: str
    bytes: float
    seconds: float
    overlapped: bool


def list_collectives(case: Case) -> list[Collective]:
    """Every kind that the rules lead to, where its axis is longer than one."""
    return [*_list_for_weights(case), *_list_for_activations(case)]


def _list_for_weights(case: Case) -> Iterator[Collective]:
    """Weights are gathered twice a microbatch, and their gradients come together once.

    In the dtype of the computation. Over an axis of the batch that does not split a
    weight, its gradients are added up. On TPUs all gradients are, whole, and waited
    for: so libtpu 0.0.42 compiles them for v5e and v5p alike.
    """
    tensors, times = case.tensors("params"), case.microbatches
    waits = case.machine.topology is not None
    for axis in case.batch_axes:
        split = [tensor for tensor in tensors if axis in tensor.gathered_axes]
        whole = sum(
            (_count_gathered_bytes(case, tensor, axis) for tensor in split), 0.0
        )
        if split:
            yield _estimate(case, "all-gather", axis, "weights", 2 * times * whole)
            if waits:
                both = 2 * times * whole
                yield _estimate(
                    case, "all-reduce", axis, "gradients", both, overlapped=False
                )
            else:
                yield _estimate(
                    case, "reduce-scatter", axis, "gradients", times * whole
                )
        rest = [tensor for tensor in tensors if axis not in tensor.mesh_axes]
        if rest:
            both = 2 * times * _count_local_bytes(case, rest)
            yield _estimate(
                case, "all-reduce", axis, "gradients", both, overlapped=not waits
            )


def _list_for_activations(case: Case) -> Iterator[Collective]:
    """Partial sums over `tensor`, and what tokens ask of experts elsewhere.

    A layer's attention and its feed-forward layer add up once forward, once backward,
    and once more where the forward pass is computed again. So do layers of experts over
    `expert` if it splits no rows; else each token goes there and back for each choice.
    """
    passes = 3 if case.remat == "keep_none" else 2
    width = case.model.embedding.shape[1]
    stream = float(
        case.local_tokens * case.microbatches * width * case.compute_dtype.itemsize
    )
    for axis in ("tensor", "expert"):
        if case.sizes[axis] == 1:
            continue
        kind, of, times = "all-reduce", "activations", _count_reductions(case, axis)
        if axis in case.batch_axes:
            kind, of, times = "all-to-all", "tokens", count_expert_visits(case)
        both = 2 * passes * stream * times
        yield _estimate(case, kind, axis, of, both, overlapped=False)


def _count_reductions(case: Case, axis: str) -> int:
    """How often the stream is the sum of what the devices of an axis have, in all."""
    split = [t for t in case.tensors("params") if t.is_stacked and axis in t.mesh_axes]
    parts = {(t.layer_kind, t.name.split(".")[5]): t.shape[0] for t in split}
    return sum(parts.values())


def count_expert_visits(case: Case) -> float:
    """How many experts a token meets in all layers."""

    def experts(block: nnx.Module) -> int:
        leaves = jax.tree.leaves(block, is_leaf=is_variable)
        sizes = [dict(zip(leaf.axes, leaf.shape, strict=True)) for leaf in leaves]
        return max(size.get("experts", 0) for size in sizes)

    blocks = case.model.stack.kinds()
    visits = (
        count * block.mlp.active_fraction * experts(block) for block, count in blocks
    )
    return sum(visits, 0.0)


def _count_gathered_bytes(case: Case, tensor: PlannedTensor, axis: str) -> float:
    """Bytes of a weight that has come together over an axis and all faster ones."""
    names = list(case.sizes)
    over = tensor.gathered_axes & set(case.batch_axes) & set(names[names.index(axis) :])
    return math.prod(case.sizes[a] for a in over) * _count_local_bytes(case, [tensor])


def _count_local_bytes(case: Case, tensors: list[PlannedTensor]) -> float:
    """Of these on one device, in the dtype of the computation."""
    return sum(
        (
            math.prod(t.local_shape) * float(case.compute_dtype.itemsize)
            for t in tensors
        ),
        0.0,
    )


def _estimate(
    case: Case,
    kind: str,
    axis: str,
    payload: str,
    whole: float,
    *,
    overlapped: bool = True,
) -> Collective:
    """The collective as gathers of `whole` bytes in all: what each sends, how long."""
    count = case.sizes[axis]
    names = list(case.sizes)
    stride = math.prod(case.sizes[name] for name in names[names.index(axis) + 1 :])
    seconds = case.machine.estimate_gather(whole, count, stride)
    return Collective(kind, axis, payload, whole * (1 - 1 / count), seconds, overlapped)
