"""Which settings are best on a machine, and what would make fit what does not."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import get_args

from lmx.models.remat import Remat
from lmx.plan.analytic import traffic
from lmx.plan.case import Case
from lmx.plan.forecast import Forecast, make_forecast
from lmx.plan.topology import Machine

TENSOR_SIZES = (1, 2, 4, 8)  # sizes that keep to one host
MAX_DOUBLINGS = 8  # of a machine, until a larger one is no more looked for
MICROBATCHES = (1, 2, 4, 8)  # that a batch is taken in


def rank_settings(said: Forecast) -> list[Forecast]:
    """All settings that fit the same machine, as a forecast, the fastest first.

    Meshes of all axes that the model can use but `stage` and `context`, which cost more
    than they bring where rows are many; all policies of recomputing; a batch taken in
    parts.
    """
    fitting = []
    for case in _enumerate_meshes(said.case):
        for remat, parts in itertools.product(get_args(Remat), MICROBATCHES):
            for one in _try_replace(case, remat=remat, microbatches=parts):
                each = make_forecast(one, said.price)
                if each.fits:
                    fitting.append(each)
    return sorted(fitting, key=lambda each: each.seconds.step)


def _enumerate_meshes(case: Case) -> Iterator[Case]:
    """The case on all meshes of powers of two that use every device."""
    machine = case.machine
    experts = _list_powers(machine.group if traffic.count_expert_visits(case) else 1)
    for tensor, expert in itertools.product(TENSOR_SIZES, experts):
        within, rest = divmod(machine.group, tensor * expert)
        if rest:
            continue
        for data in _list_powers(within):
            for replica in {1, machine.groups}:
                fsdp = within // data * (machine.groups // replica)
                sizes = {"replica": replica, "data": data, "fsdp": fsdp}
                sizes |= {"expert": expert, "tensor": tensor}
                yield from _try_replace(case, sizes=case.sizes | sizes)


def _list_powers(most: int) -> list[int]:
    """1, 2, 4 and so on, up to `most` where it is one."""
    return [2**n for n in range(most.bit_length()) if most % 2**n == 0]


def suggest(said: Forecast) -> dict[str, Forecast]:
    """The first change of each kind that makes a forecast fit, by arithmetic.

    On the same machine recomputing more, more microbatches, splitting over all devices,
    and these together; where nothing helps, the smallest larger machine on which they
    do.
    """
    case = said.case
    tried = {
        "recompute": _recompute_more(case),
        "split the batch": _split_batch(case),
        "shard": _shard_more(case),
        "together": (
            part
            for whole in (case, *_shard_more(case))
            for less in (whole, *_recompute_more(whole))
            for part in (less, *_split_batch(less))
        ),
    }
    found = {name: _find_first_fit(said, cases) for name, cases in tried.items()}
    found = {name: each for name, each in found.items() if each}
    if len(found) > 1:
        found.pop("together", None)
    if found:
        return found
    larger = _find_first_fit(said, _enlarge_machine(case))
    return {"a larger machine": larger} if larger else {}


def format_overrides(said: Forecast, better: Forecast) -> str:
    """The settings that make the one of the other, as on the command line."""
    old, new = said.case, better.case
    changed = []
    if new.machine != old.machine:
        changed.append(f"--on {new.machine.name}")
    for axis, size in new.sizes.items():
        if size != old.sizes[axis] and axis != "data":
            changed.append(f"Mesh.{axis}={size}")
    if new.remat != old.remat:
        changed.append(f"Decoder.remat={new.remat}")
    if new.microbatches != old.microbatches:
        changed.append(f"Experiment.microbatches={new.microbatches}")
    return " ".join(changed)


def _find_first_fit(said: Forecast, cases: Iterator[Case]) -> Forecast | None:
    """The first that fits, where a compiler asked for more with as much more of it."""
    reckoned = make_forecast(said.case, said.price).memory.total
    more = max(1.0, said.memory.total / reckoned)
    for case in cases:
        each = make_forecast(case, said.price)
        if each.memory.total * more <= case.machine.chip.memory:
            return each
    return None


def _recompute_more(case: Case) -> Iterator[Case]:
    yield from _try_change(case, remat="keep_none")


def _split_batch(case: Case) -> Iterator[Case]:
    """More microbatches, up to one row of each device."""
    parts = 2 * case.microbatches
    while parts * case.sequence_length * case.devices <= 2 * case.tokens and (
        case.sequences % parts == 0
    ):
        yield from _try_change(case, microbatches=parts)
        parts *= 2


def _shard_more(case: Case) -> Iterator[Case]:
    """All that `data` takes given to `fsdp`, and then more and more to `tensor`."""
    free = case.machine.devices
    for axis in ("replica", "expert", "context", "stage"):
        free //= case.sizes[axis]
    for tensor in TENSOR_SIZES:
        if tensor >= case.sizes["tensor"] and free % tensor == 0:
            split = {"data": 1, "fsdp": free // tensor, "tensor": tensor}
            yield from _try_change(case, sizes=case.sizes | split)


def _enlarge_machine(case: Case) -> Iterator[Case]:
    """Machines of twice the chips each, everything split over all of them."""
    group, groups = case.machine.group, case.machine.groups
    for _ in range(MAX_DOUBLINGS):
        if 2 * group <= case.machine.chip.max_group:
            group *= 2
        else:
            groups *= 2
        machine = _scale_machine(case.machine, group, groups)
        grown = dataclasses.replace(case, machine=machine, remat="keep_none")
        for split in _shard_more(grown):
            yield split
            yield from _split_batch(split)


def _scale_machine(like: Machine, group: int, groups: int) -> Machine:
    chip = like.chip
    name = f"{like.kind}-{group * chip.units}"
    if groups > 1:
        name = f"{name}x{groups}" if chip.torus_dims == 1 else f"{groups}x{name}"
    return Machine(name=name, kind=like.kind, group=group, groups=groups)


def _try_replace(case: Case, **changes) -> Iterator[Case]:
    """The case with the changes, where they make sense."""
    try:
        new = dataclasses.replace(case, **changes)
        new.tensors("params")
    except ValueError:
        return
    yield new


def _try_change(case: Case, **changes) -> Iterator[Case]:
    """The same, where it is another."""
    for new in _try_replace(case, **changes):
        if any(getattr(case, name) != value for name, value in changes.items()):
            yield new
