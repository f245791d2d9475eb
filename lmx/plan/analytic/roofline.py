"""How long a step takes, by what it waits for."""

from collections.abc import Sequence
from typing import NamedTuple

from lmx.plan.analytic import memory
from lmx.plan.analytic.flops import Flops
from lmx.plan.analytic.traffic import Collective
from lmx.plan.case import Case

# Of the peak, what large products of matrices reach. What libtpu 0.0.42 foretells for
# the products of llama3_8b on v5e-256; `benchmarks/plan.py` prints it for others.
MATMUL_EFFICIENCY = 0.81
# Of the peak, what a fused attention kernel reaches where heads fill the multiplier:
# between what Dao 2023, arXiv:2307.08691, section 4.1 and Shah et al. 2024,
# arXiv:2407.08608, section 4.1 measured on GPUs for both passes.
ATTENTION_EFFICIENCY = 0.5
HEAD_DIM = 128  # numbers of a head, as in nearly all large models


class StepTime(NamedTuple):
    """Of one step, for each thing that it may wait for.

    Attributes:
        compute: products of matrices, and attention.
        memory: passes over arrays between the products.
        hidden: of the network, while other work goes on.
        exposed: of the network, while all waits.
    """

    compute: float
    memory: float
    overlapped: float
    exposed: float

    @property
    def step(self) -> float:
        """Products and passes in turn or what hides behind them, and what does not."""
        return max(self.compute + self.memory, self.overlapped) + self.exposed

    @property
    def bound(self) -> str:
        """What takes most of the step."""
        network = max(self.overlapped, self.exposed)
        parts = {"compute": self.compute, "memory": self.memory, "network": network}
        return max(parts, key=lambda name: parts[name])


def estimate_time(case: Case, flops: Flops, traffic: Sequence[Collective]) -> StepTime:
    """Of one step on one device; devices are taken to be alike and never late."""
    chip = case.machine.chip
    done = (flops.executed - flops.executed_attention) * case.tokens / case.devices
    return StepTime(
        compute=done / (MATMUL_EFFICIENCY * chip.flops)
        + estimate_attention(case, flops.executed_attention),
        memory=count_memory_traffic(case) / chip.bandwidth,
        overlapped=sum((each.seconds for each in traffic if each.overlapped), 0.0),
        exposed=sum((each.seconds for each in traffic if not each.overlapped), 0.0),
    )


def estimate_attention(case: Case, flops: float) -> float:
    """Seconds of so many FLOPs a token in attention kernels.

    Both products have a side as long as a head is wide: a larger multiplier is idle in
    part.
    """
    chip = case.machine.chip
    filled = min(1.0, HEAD_DIM / chip.mxu_size)
    return (
        flops
        * case.tokens
        / case.devices
        / (ATTENTION_EFFICIENCY * filled * chip.flops)
    )


def count_memory_traffic(case: Case) -> float:
    """Bytes between one device and its memory in one step, beside the products' own.

    For each microbatch what layers make between products is written and read once, so
    are logits, and gradients where they are added up; then the optimizer reads and
    writes its state and the parameters.
    """
    now = memory.estimate_memory(case)
    every = memory.list_saved(case, "keep_all")
    inside = sum(count * part.count_local_bytes(case) for part, count in every)
    params = now.persistent["parameters"]
    logits = now.phases["logits"]["logits"] / case.logit_fraction
    each = 2 * (inside + logits) + (2 * params if case.microbatches > 1 else 0.0)
    state = params + now.persistent["optimizer state"]
    return case.microbatches * each + 2 * state + now.persistent["gradients"]
