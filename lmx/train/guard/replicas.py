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

from lmx.config.names import configurable
from lmx.core import process
from lmx.core.lobby import AGAIN
from lmx.data.progress import say
from lmx.train.checkpoint.digest import by_path
from lmx.train.guard.guard import FaultError
from lmx.train.hooks.periodic import Check, Due, Periodic, due
from lmx.train.record.directory import Directory
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState

GOLDEN = np.uint32(0x9E3779B9)  # 2**32 over the golden ratio
MIXING = [(np.uint32(0x85EBCA6B), 16), (np.uint32(0xC2B2AE35), 13)]  # of fmix32


@configurable
@dataclass(frozen=True, kw_only=True)
class Replicas(Periodic):
    """Every so many steps compares what several devices have copies of.

    Where a copy differs from the others, by a bit that memory or an arithmetic unit got
    wrong, the run ends with 75 and names tensor and device, before that state is saved:
    let `every` divide `Save.every`. One pass over the state, 4 bytes a tensor and
    device between them. What only one device has is compared with nothing.
    """

    every: int = 1000  # steps

    def start(self, run: Run) -> Callable[[Directory], Due]:
        is_due = due(self.every, run.steps)
        if not copied(run.like()) and process.first():
            say("@Replicas() compares nothing: no array is on more than one device")

        def replicas(directory: Directory) -> Due:
            del directory
            compare = Comparison(run.mesh)

            def hook(done: int, state: TrainState, metrics: Metrics) -> None:
                del metrics
                if odd := compare(state):
                    raise FaultError(
                        f"step {done}: not all devices have the same: {'; '.join(odd)}."
                        " The same command goes on from the newest state on disk, which"
                        " was compared if Replicas.every divides Save.every. Should it"
                        " happen again, leave the device out.",
                        AGAIN,
                    )

            return Check(is_due, hook)

        return replicas


class Comparison:
    """Says in which tensors of a state copies differ, and on which devices."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def __call__(self, state: PyTree) -> list[str]:
        arrays = copied(state)
        if not arrays:
            return []
        parts = tuple(arrays.values())
        specs = tuple(x.sharding.spec for x in parts)
        digests = process.whole(_digests(parts, self.mesh, specs))
        devices = list(self.mesh.devices.flat)
        found = []
        for (name, x), row in zip(arrays.items(), digests.tolist(), strict=True):
            told = dict(zip(devices, row, strict=True))
            for group in groups(x):
                if word := _odd({device: told[device] for device in group}):
                    found.append(f"{name} {word}")
        return found


@partial(jax.jit, static_argnums=(1, 2))
def _digests(
    arrays: tuple[Array, ...], mesh: Mesh, specs: tuple[PartitionSpec, ...]
) -> UInt32[Array, "_ devices"]:
    """The digest of each array on each device, in the order of the mesh."""

    def own(*blocks: Array) -> Array:
        return jnp.stack([digest(block) for block in blocks])[:, None]

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(None, mesh.axis_names),
        check_vma=False,  # what should be the same everywhere may not be
    )(*arrays)


def digest(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """A number that any one element changes, and that several hardly ever leave.

    The sum modulo 2**32 of each element mixed with its place by MurmurHash3's `fmix32`
    (Appleby 2011), of which no two elements in one place have the same.
    """
    x = x.astype("uint8") if x.dtype == bool else x
    unsigned = f"uint{8 * min(x.dtype.itemsize, 4)}"
    h = jax.lax.bitcast_convert_type(x, unsigned).astype("uint32").ravel()
    h += jax.lax.iota("uint32", h.size) * GOLDEN
    for factor, shift in MIXING:
        h = (h ^ h >> shift) * factor
    return (h ^ h >> 16).sum(dtype="uint32")


def copied(tree: PyTree) -> dict[str, Any]:
    """The arrays, by name, of which a part lies on more than one device."""
    return {
        name: x
        for name, x in by_path(tree).items()
        if any(len(group) > 1 for group in groups(x))
    }


def groups(x: Any) -> list[list[Any]]:
    """The devices of an array, or of the shape of one, by the part that they have."""
    found: dict[str, list[Any]] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        found.setdefault(f"{index}", []).append(device)
    return list(found.values())


def _odd(told: Mapping[Any, int]) -> str:
    """Which devices have another digest than most; nothing if none has."""
    (common, count), *others = Counter(told.values()).most_common()
    if not others:
        return ""
    if count == others[0][1]:
        return f"differs between {', '.join(map(str, told))}"
    odd = [device for device, number in told.items() if number != common]
    return f"on {', '.join(map(str, odd))}"
