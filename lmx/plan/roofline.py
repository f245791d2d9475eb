"""How long a step takes, by what it waits for."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lmx.plan import memory
from lmx.plan.case import Case
from lmx.plan.flops import Flops
from lmx.plan.traffic import Collective

# Of the peak, what large products of matrices are taken to reach: an assumption, the
# same for all machines.
SUSTAINED = 0.8


class Seconds(NamedTuple):
    """Of one step, for each thing that it may wait for.

    Attributes:
        hidden: of the network, while other work goes on.
        exposed: of the network, while all waits.
    """

    compute: float
    memory: float
    hidden: float
    exposed: float

    @property
    def step(self) -> float:
        """What takes longest of all that goes on at once, and what nothing hides."""
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def bound(self) -> str:
        """What takes most of the step."""
        network = max(self.hidden, self.exposed)
        parts = {"compute": self.compute, "memory": self.memory, "network": network}
        return max(parts, key=lambda name: parts[name])


def seconds(case: Case, flops: Flops, traffic: Sequence[Collective]) -> Seconds:
    """Of one step on one device; devices are taken to be alike and never late."""
    chip = case.machine.chip
    done = flops.executed * case.tokens / case.devices
    return Seconds(
        compute=done / (SUSTAINED * chip.flops),
        memory=moved(case) / chip.bandwidth,
        hidden=sum((each.seconds for each in traffic if each.hidden), 0.0),
        exposed=sum((each.seconds for each in traffic if not each.hidden), 0.0),
    )


def moved(case: Case) -> float:
    """Bytes between one device and its memory in one step.

    For each microbatch weights are read forward and backward, what layers keep and
    what they compute again is written and read, and so are logits and gradients; then
    the optimizer reads and writes its state and the parameters.
    """
    now = memory.needed(case)
    tensors = case.tensors("params")
    whole = case.compute.itemsize * sum(
        math.prod(tensor.share)
        * math.prod(case.sizes[axis] for axis in tensor.axes & set(case.batch_axes))
        for tensor in tensors
    )
    every = memory.layers(case, "keep_all")
    inside = sum(count * part.local(case) for part, count in every)
    kept = now.always["activations"]
    part = kept if case.remat == "keep_all" else kept + inside
    params, logits = now.always["parameters"], now.moments["logits"]["logits"]
    each = (3 if case.remat == "keep_none" else 2) * whole + 2 * (
        part + logits + params
    )
    return case.microbatches * each + 2 * (params + now.always["optimizer state"])
