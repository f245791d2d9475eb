"""What a case will need, in numbers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lmx.core.sharding import format_mesh
from lmx.plan.analytic import flops, memory, roofline, traffic
from lmx.plan.analytic.flops import Flops
from lmx.plan.analytic.memory import MemoryUse
from lmx.plan.analytic.roofline import StepTime
from lmx.plan.analytic.traffic import Collective
from lmx.plan.case import Case, PlannedTensor


class CompileCost(NamedTuple):
    """What it took to compile: seconds, and bytes of memory here."""

    seconds: float
    peak_memory: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All that is foretold.

    Attributes:
        how: where memory, traffic and seconds come from, in words.
        uncounted: kernels whose time nobody knows, and which are taken to need none.
        price: US dollars for an hour of one chip.
    """

    method: str
    case: Case
    flops: Flops
    memory: MemoryUse
    collectives: tuple[Collective, ...]
    seconds: StepTime
    price: float
    compiled: CompileCost | None = None
    untimed_kernels: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a device holds what it must at the fullest moment."""
        return self.memory.total <= self.case.machine.chip.memory

    @property
    def tokens_per_second(self) -> float:
        return self.case.tokens / self.seconds.step

    @property
    def mfu(self) -> float:
        """Of the peak of the devices used, by the convention that `lmx train` has."""
        peak = self.case.machine.chip.flops * self.case.devices
        return self.flops.attention * self.tokens_per_second / peak

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.case.steps * self.seconds.step / 3600

    @property
    def dollars(self) -> float:
        """For the whole run, of every chip of the machine, used or not."""
        return self.hours * self.case.machine.devices * self.price

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def tensors(self) -> list[PlannedTensor]:
        """Parameters, then the state of the optimizer."""
        return [*self.case.tensors("params"), *self.case.tensors("opt_state")]

    @property
    def settings(self) -> str:
        """What was chosen, in words of the command line."""
        case = self.case
        return f"{format_mesh(case.sizes)}, remat {case.remat}, microbatches {case.microbatches}"

    def to_json(self) -> dict[str, Any]:
        """Everything, for a machine."""
        case = self.case
        return {
            "how": self.method,
            "compiling": self.compiled and self.compiled._asdict(),
            "uncounted": self.untimed_kernels,
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
                    "split": [tensor.spec[i] for i in range(len(tensor.spec))],
                    "bytes": tensor.bytes,
                    "device_bytes": tensor.local_bytes,
                }
                for tensor in self.tensors
            ],
        }


def make_forecast(case: Case, price: float) -> Forecast:
    """What the case will need, analytically, at a price of a chip and hour."""
    counted = flops.count_flops(case.model, case.sequence_length, case.remat)
    told = tuple(traffic.list_collectives(case))
    return Forecast(
        method="Analytic",
        case=case,
        flops=counted,
        memory=memory.estimate_memory(case),
        collectives=told,
        seconds=roofline.estimate_time(case, counted, told),
        price=price,
    )
