"""Copies of one array on several devices, compared to the bit: a flipped bit shows."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree, Shaped, UInt32

from lmx.config.registry import configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.core.rendezvous import EXIT_RESTART
from lmx.run.run_dir import RunDir
from lmx.train.checkpoint.digest import flatten_by_path
from lmx.train.guard.guard import FaultError
from lmx.train.hook import Hook, PreSaveHook, ScheduledHook, make_schedule
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

GOLDEN_RATIO = np.uint32(0x9E3779B9)  # 2**32 over the golden ratio
FMIX32 = [(np.uint32(0x85EBCA6B), 16), (np.uint32(0xC2B2AE35), 13)]  # of fmix32


@configurable
@dataclass(frozen=True, kw_only=True)
class ReplicaCheck(Hook):
    """Every so many steps compares what several devices have copies of.

    Where a copy differs from the others, by a bit that memory or an arithmetic unit got
    wrong, the run ends with 75 and names tensor and device, before that state is saved:
    let `every` divide `CheckpointPolicy.every`. One pass over the state, 4 bytes a tensor and
    device between them. What only one device has is compared with nothing.
    """

    every: int = 1000  # steps

    def start(self, run: RunContext) -> Callable[[RunDir], ScheduledHook]:
        is_due = make_schedule(self.every, run.steps)
        if not find_replicated(run.abstract_state()) and distributed.is_leader():
            print_line(
                "@ReplicaCheck() compares nothing: no array is on more than one device"
            )

        def replicas(directory: RunDir) -> ScheduledHook:
            del directory
            compare = ReplicaDigests(run.mesh)

            def hook(done: int, state: TrainState, metrics: Metrics) -> None:
                del metrics
                if odd := compare(state):
                    raise FaultError(
                        f"step {done}: not all devices have the same: {'; '.join(odd)}."
                        " The same command goes on from the newest state on disk, which"
                        " was compared if ReplicaCheck.every divides CheckpointPolicy.every. Should it"
                        " happen again, leave the device out.",
                        EXIT_RESTART,
                    )

            return PreSaveHook(is_due, hook)

        return replicas


class ReplicaDigests:
    """Says in which tensors of a state copies differ, and on which devices."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def __call__(self, state: PyTree) -> list[str]:
        arrays = find_replicated(state)
        if not arrays:
            return []
        parts = tuple(arrays.values())
        specs = tuple(x.sharding.spec for x in parts)
        digests = distributed.fetch_global(_digests(parts, self.mesh, specs))
        devices = list(self.mesh.devices.flat)
        found = []
        for (name, x), row in zip(arrays.items(), digests.tolist(), strict=True):
            told = dict(zip(devices, row, strict=True))
            for group in group_devices(x):
                if word := _describe_outliers(
                    {device: told[device] for device in group}
                ):
                    found.append(f"{name} {word}")
        return found


@partial(jax.jit, static_argnums=(1, 2))
def _digests(
    arrays: tuple[Array, ...], mesh: Mesh, specs: tuple[PartitionSpec, ...]
) -> UInt32[Array, "_ devices"]:
    """The digest of each array on each device, in the order of the mesh."""

    def own(*blocks: Array) -> Array:
        return jnp.stack([hash_array(block) for block in blocks])[:, None]

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(None, mesh.axis_names),
        check_vma=False,  # what should be the same everywhere may not be
    )(*arrays)


def hash_array(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """A number that any one element changes, and that several hardly ever leave.

    The sum modulo 2**32 of each element mixed with its place by MurmurHash3's `fmix32`
    (Appleby 2011), of which no two elements in one place have the same.
    """
    x = x.astype("uint8") if x.dtype == bool else x
    unsigned = f"uint{8 * min(x.dtype.itemsize, 4)}"
    h = jax.lax.bitcast_convert_type(x, unsigned).astype("uint32").ravel()
    h += jax.lax.iota("uint32", h.size) * GOLDEN_RATIO
    for factor, shift in FMIX32:
        h = (h ^ h >> shift) * factor
    return (h ^ h >> 16).sum(dtype="uint32")


def find_replicated(tree: PyTree) -> dict[str, Any]:
    """The arrays, by name, of which a part lies on more than one device."""
    return {
        name: x
        for name, x in flatten_by_path(tree).items()
        if any(len(group) > 1 for group in group_devices(x))
    }


def group_devices(x: Any) -> list[list[Any]]:
    """The devices of an array, or of the shape of one, by the part that they have."""
    found: dict[str, list[Any]] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        found.setdefault(f"{index}", []).append(device)
    return list(found.values())


def _describe_outliers(told: Mapping[Any, int]) -> str:
    """Which devices have another digest than most; nothing if none has."""
    (common, count), *others = Counter(told.values()).most_common()
    if not others:
        return ""
    if count == others[0][1]:
        return f"differs between {', '.join(map(str, told))}"
    odd = [device for device, number in told.items() if number != common]
    return f"on {', '.join(map(str, odd))}"
