"""FLOPs of a token, and the time of a step by its bottleneck."""

from collections.abc import Sequence
from typing import NamedTuple

from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.models.remat import Remat
from lmx.plan.analytic import memory
from lmx.plan.analytic.traffic import Collective
from lmx.plan.case import Case

# Products like that of queries and keys in a fused kernel, whose backward pass computes
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
        executed: as `causal`, with recomputation in the backward pass.
        executed_attention: the part of `executed` in attention kernels.
    """

    weights: float
    attention: float
    causal: float
    executed: float
    executed_attention: float


def count_flops(model: Decoder, length: int, remat: Remat) -> Flops:
    """All conventions for rows of `length` tokens, each one document.

    Assumes that attention skips masked tokens and saves no scores, so that all policies
    but `keep_all` compute it again.
    """
    weights = flops.train_flops_per_token(model, 0)
    modules = model.mtp.modules if model.mtp else ()
    blocks = [*model.stack.kinds(), *((module.block, 1) for module in modules)]
    product = active = 0.0
    for block, layers in blocks:
        keys = _count_mean_keys(length, block.attention.window)
        product += layers * block.attention.macs_per_pair * keys
        active += flops.count_active_weights(block, block.mlp.active_fraction)
    attention = product * (FORWARD + BACKWARD + (remat != "keep_all") * FORWARD)
    recomputed = 2 * active if remat == "keep_none" else 0.0
    return Flops(
        weights=weights,
        attention=flops.train_flops_per_token(model, length),
        causal=weights + 6 * product,
        executed=weights + recomputed + attention,
        executed_attention=attention,
    )


def _count_mean_keys(length: int, window: int | None) -> float:
    """The mean number of tokens that a token attends to, itself included."""
    reach = min(length, window or length)
    return reach * (2 * length - reach + 1) / (2 * length)


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


def estimate_time(case: Case, flops: Flops, traffic: Sequence[Collective]) -> StepTime:
    """The time of a step, on devices that are equally fast."""
    chip = case.machine.chip
    matmuls = (flops.executed - flops.executed_attention) * case.tokens / case.devices
    attention = estimate_attention(case, flops.executed_attention)
    return add_network(
        matmuls / (MATMUL_EFFICIENCY * chip.flops) + attention,
        count_memory_traffic(case) / chip.bandwidth,
        traffic,
    )


def add_network(
    compute: float, memory: float, traffic: Sequence[Collective]
) -> StepTime:
    """The time of a step with those collectives."""
    seconds = {True: 0.0, False: 0.0}
    for each in traffic:
        seconds[each.overlapped] += each.seconds
    return StepTime(compute, memory, seconds[True], seconds[False])


def estimate_attention(case: Case, flops: float) -> float:
    """Seconds of that many FLOPs per token in attention kernels.

    One side of both products is as long as a head: it fills a large multiplier in part.
    """
    chip = case.machine.chip
    filled = min(1.0, HEAD_DIM / chip.mxu_size)
    peak = ATTENTION_EFFICIENCY * filled * chip.flops
    return flops * case.tokens / case.devices / peak


def count_memory_traffic(case: Case) -> float:
    """Bytes between a device and its memory in one step, without those of matmuls.

    Each microbatch writes and reads once the arrays between matmuls, the logits, and
    the accumulated gradients; the optimizer reads and writes its state and the
    parameters.
    """
    use = memory.estimate_memory(case)
    every = memory.list_saved(case, "keep_all")
    between = sum(count * part.count_local_bytes(case) for part, count in every)
    params = use.persistent["parameters"]
    logits = use.phases["logits"]["logits"] / case.logit_fraction
    each = 2 * (between + logits) + (2 * params if case.microbatches > 1 else 0.0)
    state = params + use.persistent["optimizer state"]
    return case.microbatches * each + 2 * state + use.persistent["gradients"]
