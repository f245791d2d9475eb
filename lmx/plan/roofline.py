"""FLOPs, communication and time of a step, by arithmetic."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from flax import nnx

from lmx.core.sharding import is_variable
from lmx.models import params
from lmx.models.decoder import Decoder
from lmx.models.remat import Remat
from lmx.plan.case import WEIGHTS, Case, PlannedTensor
from lmx.plan.memory import MemoryUse, measure_layers

# Matmuls of the size of Q K^T in a fused attention kernel, whose backward pass computes
# the scores again. Dao 2023, arXiv:2307.08691, section 2.3.
FORWARD, BACKWARD = 2, 5
# The fraction of the peak that large matmuls reach: the estimate of libtpu 0.0.42 for
# llama3_8b on v5e-256; `benchmarks/plan.py` prints it for others.
MATMUL_EFFICIENCY = 0.81
# The fraction of the peak that a fused attention kernel reaches if heads fill the
# multiplier: between what Dao 2023, arXiv:2307.08691, section 4.1 and Shah et al. 2024,
# arXiv:2407.08608, section 4.1 measured on GPUs for both passes.
ATTENTION_EFFICIENCY = 0.5
HEAD_DIM = 128  # of nearly all large models


class Flops(NamedTuple):
    """FLOPs of training on one token.

    Attributes:
        weights: 6 for each active weight (6N). Kaplan et al. 2020, arXiv:2001.08361,
            section 2.1.
        attention: with attention to all tokens, as in the MFU of `lmx train`.
            Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
        causal: with attention to earlier tokens only.
        executed: as `causal`, with recomputation in the backward pass, and with the
            forward pass of what a loss owns.
        executed_attention: the part of `executed` in attention kernels.
    """

    weights: float
    attention: float
    causal: float
    executed: float
    executed_attention: float


def count_flops(model: Decoder, length: int, remat: Remat) -> Flops:
    """All conventions for rows of `length` tokens, each one document.

    Attention skips masked tokens unless its backend holds all logits, and all policies
    but `keep_all` compute it again.
    """
    weights = params.train_flops_per_token(model, 0)
    modules = model.mtp.modules if model.mtp else ()
    blocks = [*model.stack.kinds(), *((module.block, 1) for module in modules)]
    product = executed = active = 0.0
    for block, layers in blocks:
        reach = min(length, block.attention.window or length)
        keys = reach * (2 * length - reach + 1) / (2 * length)  # the mean of a query
        product += layers * block.attention.macs_per_pair * keys
        if block.attention.backend.count_pairs(length, length) == length**2:
            keys = length
        executed += layers * block.attention.macs_per_pair * keys
        active += params.count_active_weights(block, block.mlp.active_fraction)
    attention = executed * (FORWARD + BACKWARD + (remat != "keep_all") * FORWARD)
    recomputed = 2 * active if remat == "keep_none" else 0.0
    return Flops(
        weights=weights,
        attention=params.train_flops_per_token(model, length),
        causal=weights + 6 * product,
        executed=weights + recomputed + attention,
        executed_attention=attention,
    )


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
    weights, trained = case.tensors(*WEIGHTS), case.tensors("params")
    on_tpu = case.machine.topology is not None
    scale = case.microbatches * float(case.compute_dtype.itemsize)
    for axis in case.batch_axes:
        if size := scale * _count_gathered(case, weights, axis):
            yield _estimate(case, "all-gather", axis, "weights", 2 * size)
        if size := scale * _count_gathered(case, trained, axis):
            kind = "all-reduce" if on_tpu else "reduce-scatter"
            sums = 2 * size if on_tpu else size
            yield _estimate(case, kind, axis, "gradients", sums, exposed=on_tpu)
        if rest := sum(t.local_size for t in trained if axis not in t.mesh_axes):
            size = 2 * scale * rest
            yield _estimate(case, "all-reduce", axis, "gradients", size, exposed=on_tpu)


def _count_gathered(case: Case, tensors: Sequence[PlannedTensor], axis: str) -> int:
    """Elements of weights that an axis shards, gathered over it and faster ones."""
    names = list(case.sizes)
    faster = set(case.batch_axes) & set(names[names.index(axis) :])
    return sum(
        math.prod(case.sizes[name] for name in tensor.gathered_axes & faster)
        * tensor.local_size
        for tensor in tensors
        if axis in tensor.gathered_axes
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
            kind, payload, times = "all-to-all", "tokens", count_expert_traffic(case)
        size = 2 * passes * float(tokens * width * case.compute_dtype.itemsize) * times
        yield _estimate(case, kind, axis, payload, size, exposed=True)


def _count_sums(case: Case, axis: str) -> int:
    """The number of layer outputs that are summed over an axis."""
    layers = {
        (tensor.layer_kind, tensor.name.split(".")[5]): tensor.shape[0]
        for tensor in case.tensors(*WEIGHTS)
        if tensor.is_stacked and axis in tensor.mesh_axes
    }
    return sum(layers.values())


def count_expert_traffic(case: Case) -> float:
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


def _estimate(
    case: Case, kind: str, axis: str, payload: str, size: float, *, exposed=False
) -> Collective:
    """A collective that takes as long as all-gathers of `size` bytes in total."""
    count, names = case.sizes[axis], list(case.sizes)
    stride = math.prod(case.sizes[name] for name in names[names.index(axis) + 1 :])
    seconds = case.machine.estimate_gather(size, count, stride)
    sent = size * (1 - 1 / count)
    return Collective(kind, axis, payload, sent, seconds, overlapped=not exposed)


class StepTime(NamedTuple):
    """Seconds of one step.

    Attributes:
        compute: matmuls and attention.
        memory: passes over arrays between matmuls.
        overlapped: communication during other work.
        exposed: communication while all else waits.
    """

    compute: float
    memory: float
    overlapped: float
    exposed: float

    @classmethod
    def build(
        cls, compute: float, memory: float, collectives: Sequence[Collective]
    ) -> "StepTime":
        """The time of a step with those collectives."""
        overlapped = sum((c.seconds for c in collectives if c.overlapped), 0.0)
        exposed = sum((c.seconds for c in collectives if not c.overlapped), 0.0)
        return cls(compute, memory, overlapped, exposed)

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return max(self.compute + self.memory, self.overlapped) + self.exposed

    @property
    def bound(self) -> str:
        """The largest part of the step."""
        network = max(self.overlapped, self.exposed)
        parts = {"compute": self.compute, "memory": self.memory, "network": network}
        return max(parts, key=lambda name: parts[name])


def estimate_time(
    case: Case, flops: Flops, memory: MemoryUse, collectives: Sequence[Collective]
) -> StepTime:
    """The time of a step, on devices that are equally fast."""
    matmuls = (flops.executed - flops.executed_attention) * case.tokens / case.devices
    attention = estimate_attention(case, flops.executed_attention)
    return StepTime.build(
        matmuls / (MATMUL_EFFICIENCY * case.peak_flops) + attention,
        count_memory_traffic(case, memory) / case.machine.chip.bandwidth,
        collectives,
    )


def estimate_attention(case: Case, flops: float) -> float:
    """Seconds of that many FLOPs per token in attention kernels.

    One side of both products is as long as a head: it fills a large multiplier in part.
    """
    filled = min(1.0, HEAD_DIM / case.machine.chip.mxu_size)
    peak = ATTENTION_EFFICIENCY * filled * case.peak_flops
    return flops * case.tokens / case.devices / peak


def count_memory_traffic(case: Case, memory: MemoryUse) -> float:
    """Bytes between a device and its memory in one step, without those of matmuls.

    Each microbatch writes and reads once the arrays between matmuls, the logits, and
    the accumulated gradients; the optimizer reads and writes its state and the
    parameters.
    """
    layers = measure_layers(case, "keep_all")
    between = sum((each.tokens + each.pairs) * each.layers for each in layers)
    logits = memory.phases["logits"]["logits"] / case.logit_fraction
    params = memory.persistent["parameters"]
    each = 2 * (between + logits) + (2 * params if case.microbatches > 1 else 0.0)
    state = params + memory.persistent["optimizer state"]
    return case.microbatches * each + 2 * state + memory.persistent["gradients"]
