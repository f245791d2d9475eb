"""Search for the fastest settings on a machine, and for settings that fit."""

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from lmx.config.resolve import from_json
from lmx.config.value import Config
from lmx.models.remat import Remat
from lmx.plan.case import Case, build_case
from lmx.plan.forecast import Forecast, make_forecast
from lmx.plan.roofline import count_expert_traffic
from lmx.plan.topology import Machine

TENSOR_SIZES = (1, 2, 4, 8)  # within one host
MAX_DOUBLINGS = 8  # of a machine, in search of a larger one
MICROBATCHES = (1, 2, 4, 8)
UNFUSED = r"@(Reference|XLA)Attention\(\)"  # they hold logits of all pairs of tokens
# Backends that do not, the fastest first; the last one runs wherever attention does.
FUSED = {
    "tpu": ("SplashAttention", "RingAttention"),
    "gpu": ("CuDNNAttention", "RingAttention"),
    "cpu": ("RingAttention",),
}


def rank_settings(forecast: Forecast) -> list[Forecast]:
    """All settings that fit the same machine, the fastest first.

    These are meshes of all axes that the model can use except `stage` and `context`,
    which cost more than they save if there are many rows; all remat policies; and
    several numbers of microbatches.
    """
    case = forecast.case
    cases = _list_variants(case, _list_meshes(case), get_args(Remat), MICROBATCHES)
    every = [make_forecast(each, forecast.price) for each in cases]
    return sorted((e for e in every if e.fits), key=lambda e: e.seconds.step)


def _list_variants(
    case: Case,
    meshes: Iterable[dict[str, int]],
    remats: Sequence[Remat],
    microbatches: Sequence[int],
) -> Iterator[Case]:
    """The case with each valid combination of these settings."""
    for sizes, remat, parts in itertools.product(meshes, remats, microbatches):
        try:
            yield dataclasses.replace(
                case, sizes=sizes, remat=remat, microbatches=parts
            )
        except ValueError:
            continue


def _list_meshes(case: Case) -> Iterator[dict[str, int]]:
    """The sizes of all meshes of powers of two that use every device."""
    machine = case.machine
    experts = machine.group if count_expert_traffic(case) else 1
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


def fuse_attention(config: Config, case: Case) -> Case:
    """The case without logits of all pairs of tokens, if a backend allows it."""
    for name in FUSED[case.machine.chip.platform]:
        with contextlib.suppress(ValueError):
            fused = from_json(re.sub(UNFUSED, f"@{name}()", config.to_json()))
            planned = build_case(fused.build(), case.machine)
            return dataclasses.replace(case, model=planned.model)
    return case


def suggest(config: Config, forecast: Forecast) -> dict[str, Forecast]:
    """The first change of each kind with which an experiment fits, analytically.

    On the same machine: fused attention, which all others include; recomputing more,
    more microbatches, sharding over all devices, and these together; if none fits, the
    smallest larger machine on which they do.
    """
    if forecast.fits:
        return {}
    case = fuse_attention(config, forecast.case)
    mesh, shard = [case.sizes], [case.sizes, *_list_shardings(case)]
    remat: list[Remat] = [case.remat]
    recompute: list[Remat] = [case.remat, "keep_none"]
    parts = [case.microbatches]
    split = [case.microbatches * n for n in _list_powers(case.sequences)]
    variants = {
        "fused attention": [case],
        "recompute": _list_variants(case, mesh, recompute, parts),
        "split the batch": _list_variants(case, mesh, remat, split),
        "shard": _list_variants(case, shard, remat, parts),
        "together": _list_variants(case, shard, recompute, split),
        "a larger machine": _list_larger(case, split),
    }
    fixes: dict[str, Forecast] = {}
    for name, cases in variants.items():
        if fixes and name in ("together", "a larger machine"):
            break
        if each := _find_first_fit(forecast, cases):
            fixes[name] = each
    return fixes


def _find_first_fit(forecast: Forecast, cases: Iterable[Case]) -> Forecast | None:
    """The first case that fits, scaled by what a compiler measured for the forecast."""
    analytic = make_forecast(forecast.case, forecast.price).memory.total
    scale = max(1.0, forecast.memory.total / analytic)
    for case in cases:
        each = make_forecast(case, forecast.price)
        if each.memory.total * scale <= case.machine.chip.memory:
            return each
    return None


def _list_shardings(case: Case) -> Iterator[dict[str, int]]:
    """Meshes with `data` 1 and increasing `tensor`, all other devices in `fsdp`."""
    free = case.machine.devices
    for axis in ("replica", "expert", "context", "stage"):
        free //= case.sizes[axis]
    for tensor in TENSOR_SIZES:
        if tensor >= case.sizes["tensor"] and free % tensor == 0:
            yield case.sizes | {"data": 1, "fsdp": free // tensor, "tensor": tensor}


def _list_larger(case: Case, microbatches: Sequence[int]) -> Iterator[Case]:
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
        grown = dataclasses.replace(case, machine=machine)
        meshes = _list_shardings(grown)
        yield from _list_variants(grown, meshes, ("keep_none",), microbatches)


def format_overrides(forecast: Forecast, better: Forecast) -> str:
    """The command-line arguments that change one forecast into the other."""
    old, new = (_list_settings(each.case) for each in (forecast, better))
    words = [
        shlex.quote(f"{name}={value}")
        for name, value in new.items()
        if value != old[name]
    ]
    if better.case.machine != forecast.case.machine:
        words.insert(0, f"--on {better.case.machine.name}")
    return " ".join(words)


def _list_settings(case: Case) -> dict[str, Any]:
    """The settings that a search changes, by their names in a config."""
    sizes = {f"Mesh.{axis}": n for axis, n in case.sizes.items() if axis != "data"}
    layers = [block.attention for block, _ in case.model.stack.kinds()]
    backends = {
        f"{type(layer).__name__}.backend": f"@{type(layer.backend).__name__}()"
        for layer in layers
    }
    other = {"Decoder.remat": case.remat, "Experiment.microbatches": case.microbatches}
    return backends | sizes | other
