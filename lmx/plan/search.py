"""Search for the fastest settings on a machine, and for settings that fit."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import get_args

from lmx.models.remat import Remat
from lmx.plan.analytic import traffic
from lmx.plan.case import Case
from lmx.plan.forecast import Forecast, make_forecast
from lmx.plan.topology import Machine

TENSOR_SIZES = (1, 2, 4, 8)  # within one host
MAX_DOUBLINGS = 8  # of a machine, in search of a larger one
MICROBATCHES = (1, 2, 4, 8)


def rank_settings(forecast: Forecast) -> list[Forecast]:
    """All settings that fit the same machine, the fastest first.

    These are meshes of all axes that the model can use except `stage` and `context`,
    which cost more than they save if there are many rows; all remat policies; and
    several numbers of microbatches.
    """
    case, fitting = forecast.case, []
    for sizes in _list_meshes(case):
        if not (mesh_case := _vary(case, sizes=sizes)):
            continue
        for remat, parts in itertools.product(get_args(Remat), MICROBATCHES):
            if variant := _vary(mesh_case, remat=remat, microbatches=parts):
                each = make_forecast(variant, forecast.price)
                fitting += [each] if each.fits else []
    return sorted(fitting, key=lambda each: each.seconds.step)


def _list_meshes(case: Case) -> Iterator[dict[str, int]]:
    """The sizes of all meshes of powers of two that use every device."""
    machine = case.machine
    experts = machine.group if traffic.count_expert_visits(case) else 1
    for tensor, expert in itertools.product(TENSOR_SIZES, _list_powers(experts)):
        rows, rest = divmod(machine.group, tensor * expert)
        if rest:
            continue
        for data, replica in itertools.product(_list_powers(rows), {1, machine.groups}):
            fsdp = rows // data * (machine.groups // replica)
            sizes = {"replica": replica, "data": data, "fsdp": fsdp}
            yield case.sizes | sizes | {"expert": expert, "tensor": tensor}


def _list_powers(limit: int) -> list[int]:
    """The powers of two that divide `limit`."""
    return [2**n for n in range(limit.bit_length()) if limit % 2**n == 0]


def suggest(forecast: Forecast) -> dict[str, Forecast]:
    """The first change of each kind with which a forecast fits, analytically.

    On the same machine: recomputing more, more microbatches, sharding over all devices,
    and these together; if none fits, the smallest larger machine on which they do.
    """
    case = forecast.case
    variants = {
        "recompute": _list_variants(case, recompute=True),
        "split the batch": _list_variants(case, split=True),
        "shard": _list_variants(case, shard=True),
        "together": _list_variants(case, recompute=True, split=True, shard=True),
    }
    found = {name: _find_first_fit(forecast, each) for name, each in variants.items()}
    fixes = {name: each for name, each in found.items() if each}
    if len(fixes) > 1:
        fixes.pop("together", None)
    if not fixes and (larger := _find_first_fit(forecast, _list_larger(case))):
        return {"a larger machine": larger}
    return fixes


def format_overrides(forecast: Forecast, better: Forecast) -> str:
    """The command-line arguments that change one forecast into the other."""
    old, new = forecast.case, better.case
    changed = {
        f"Mesh.{axis}": size for axis, size in new.sizes.items() if axis != "data"
    }
    changed |= {"Decoder.remat": new.remat, "Experiment.microbatches": new.microbatches}
    before = {f"Mesh.{axis}": size for axis, size in old.sizes.items()}
    before |= {"Decoder.remat": old.remat, "Experiment.microbatches": old.microbatches}
    words = [f"{k}={value}" for k, value in changed.items() if value != before[k]]
    on = [f"--on {new.machine.name}"] if new.machine != old.machine else []
    return " ".join(on + words)


def _find_first_fit(forecast: Forecast, cases: Iterable[Case]) -> Forecast | None:
    """The first case that fits, scaled by what a compiler measured for the forecast."""
    analytic = make_forecast(forecast.case, forecast.price).memory.total
    scale = max(1.0, forecast.memory.total / analytic)
    for case in cases:
        each = make_forecast(case, forecast.price)
        if each.memory.total * scale <= case.machine.chip.memory:
            return each
    return None


def _list_variants(
    case: Case, *, recompute: bool = False, split: bool = False, shard: bool = False
) -> Iterator[Case]:
    """The case with these kinds of change: none at first, then more and more."""
    remats: tuple[Remat, ...] = (
        (case.remat, "keep_none") if recompute else (case.remat,)
    )
    for sizes in (case.sizes, *(_list_shardings(case) if shard else ())):
        for remat in remats:
            variant = _vary(case, sizes=sizes, remat=remat)
            while variant:
                yield variant
                parts = 2 * variant.microbatches
                rows = parts * case.sequence_length * variant.devices
                fewest = rows > 2 * case.tokens  # a microbatch has a row a device
                variant = _vary(variant, microbatches=parts)
                if not split or fewest:
                    break


def _list_shardings(case: Case) -> Iterator[dict[str, int]]:
    """Meshes without `data` and with more and more `tensor`, the rest in `fsdp`."""
    free = case.machine.devices
    for axis in ("replica", "expert", "context", "stage"):
        free //= case.sizes[axis]
    for tensor in TENSOR_SIZES:
        if tensor >= case.sizes["tensor"] and free % tensor == 0:
            yield case.sizes | {"data": 1, "fsdp": free // tensor, "tensor": tensor}


def _list_larger(case: Case) -> Iterator[Case]:
    """Machines of twice the chips each, everything sharded over all of them."""
    kind, chip = case.machine.kind, case.machine.chip
    group, groups = case.machine.group, case.machine.groups
    for _ in range(MAX_DOUBLINGS):
        if 2 * group <= chip.max_group:
            group *= 2
        else:
            groups *= 2
        name = f"{kind}-{group * chip.units}"
        if groups > 1:
            name = f"{name}x{groups}" if chip.torus_dims == 1 else f"{groups}x{name}"
        machine = Machine(name=name, kind=kind, group=group, groups=groups)
        grown = dataclasses.replace(case, machine=machine, remat="keep_none")
        yield from _list_variants(grown, split=True, shard=True)


def _vary(case: Case, **changes) -> Case | None:
    """The case with the changes, if they are valid."""
    try:
        new = dataclasses.replace(case, **changes)
        new.tensors("params")
    except ValueError:
        return None
    return new
