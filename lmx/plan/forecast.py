"""Predicted memory, time and cost of a case."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmx.core.sharding import format_mesh
from lmx.plan.case import PARTS, Case, PlannedTensor
from lmx.plan.memory import MemoryUse, estimate_memory
from lmx.plan.roofline import (
    Collective,
    Flops,
    StepTime,
    count_flops,
    estimate_time,
    list_collectives,
)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All predictions for a case.

    Attributes:
        method: where memory, collectives and seconds come from.
        price: US dollars for an hour of one chip.
        compile_cost: seconds and peak bytes of memory of the compiler, if it was used.
        untimed_kernels: kernels of unknown time, counted as 0 seconds.
    """

    method: str
    case: Case
    flops: Flops
    memory: MemoryUse
    collectives: tuple[Collective, ...]
    seconds: StepTime
    price: float
    compile_cost: Mapping[str, float] | None = None
    untimed_kernels: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the memory of a device suffices in the largest phase."""
        return self.memory.total <= self.case.machine.chip.memory

    @property
    def tokens_per_second(self) -> float:
        return self.case.tokens / self.seconds.step

    @property
    def mfu(self) -> float:
        """The fraction of the peak of the devices used, as `lmx train` counts it."""
        peak = self.case.machine.chip.flops * self.case.devices
        return self.flops.attention * self.tokens_per_second / peak

    @property
    def hours(self) -> float:
        return self.case.steps * self.seconds.step / 3600

    @property
    def dollars(self) -> float:
        """US dollars for all chips of the machine during the run, used or not."""
        return self.hours * self.case.machine.devices * self.price

    @property
    def checkpoint_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.case.tensors("params", "opt_state"))

    @property
    def tensors(self) -> list[PlannedTensor]:
        """All that a device holds for the whole run."""
        return self.case.tensors(*PARTS)

    @property
    def settings(self) -> str:
        """The chosen mesh, remat policy and microbatches."""
        case = self.case
        mesh = format_mesh(case.sizes)
        return f"{mesh}, remat {case.remat}, microbatches {case.microbatches}"

    def to_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "method": self.method,
            "compile_cost": self.compile_cost,
            "untimed_kernels": self.untimed_kernels,
            "machine": case.machine.name,
            "devices": case.machine.devices,
            "mesh": case.sizes,
            "remat": case.remat,
            "microbatches": case.microbatches,
            "fits": self.fits,
            "memory": {
                "device": case.machine.chip.memory,
                "total": self.memory.total,
                **self.memory._asdict(),
            },
            "flops_per_token": self.flops._asdict(),
            "collectives": [each._asdict() for each in self.collectives],
            "seconds": {**self.seconds._asdict(), "step": self.seconds.step},
            "bound": self.seconds.bound,
            "tokens_per_step": case.tokens,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "hours": self.hours,
            "dollars": self.dollars,
            "checkpoint_bytes": self.checkpoint_bytes,
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": tensor.shape,
                    "spec": [*tensor.spec],
                    "bytes": tensor.bytes,
                    "device_bytes": tensor.local_bytes,
                }
                for tensor in self.tensors
            ],
        }


def make_forecast(case: Case, price: float) -> Forecast:
    """The analytic forecast of a case, at a price of a chip for an hour.

    What a loss owns, such as a teacher, runs forward: 2 FLOPs per element and token.
    """
    flops = count_flops(case.model, case.sequence_length, case.remat)
    frozen = sum(math.prod(tensor.shape) for tensor in case.tensors("frozen.loss"))
    flops = flops._replace(executed=flops.executed + 2 * frozen)
    collectives, memory = tuple(list_collectives(case)), estimate_memory(case)
    return Forecast(
        method="Analytic",
        case=case,
        flops=flops,
        memory=memory,
        collectives=collectives,
        seconds=estimate_time(case, flops, memory, collectives),
        price=price,
    )
