"""Compares the replicas of arrays on several devices to detect flipped bits."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree, Shaped, UInt32

from lmx.config.registry import Positive, configurable
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.core.rendezvous import EXIT_RESTART
from lmx.train.checkpoint.digest import flatten_by_path
from lmx.train.guard.nonfinite import FaultError
from lmx.train.hook import Hook, HookConfig, every_steps
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState

GOLDEN_RATIO = np.uint32(0x9E3779B9)  # 2**32 over the golden ratio
FMIX32 = [(np.uint32(0x85EBCA6B), 16), (np.uint32(0xC2B2AE35), 13)]


@configurable
@dataclass(frozen=True, kw_only=True)
class ReplicaCheck(HookConfig):
    """Compares arrays that several devices hold, every so many steps.

    If replicas differ, as by a flipped bit, the run ends with status 75 and names
    tensor and device, before that state is saved: let `every` divide
    `CheckpointPolicy.every`. Costs one pass over the state, and 4 bytes of
    communication for each tensor and device. Does not check sharded arrays.
    """

    every: Positive[int] = 1000  # steps

    def build(self, run: RunContext) -> Hook:
        if not find_replicated(run.abstract_state()) and distributed.is_leader():
            print_line(
                "@ReplicaCheck() compares nothing: no array is on more than one device"
            )

        def check(step: int, state: TrainState, metrics: Metrics) -> None:
            del metrics
            if differing := compare_replicas(state, run.mesh):
                raise FaultError(
                    f"step {step}: replicas differ: {'; '.join(differing)}. The same"
                    " command resumes from the newest checkpoint, which was checked if"
                    " ReplicaCheck.every divides CheckpointPolicy.every. If this"
                    " happens again, exclude the device.",
                    EXIT_RESTART,
                )

        is_due = every_steps(self.every, run.steps)
        return Hook(call=check, is_due=is_due, before_save=True)


def compare_replicas(state: PyTree, mesh: Mesh) -> list[str]:
    """Which tensors of a state differ between replicas, and on which devices."""
    arrays = find_replicated(state)
    if not arrays:
        return []
    parts = tuple(arrays.values())
    specs = tuple(x.sharding.spec for x in parts)
    digests = distributed.fetch_global(_digests(parts, mesh, specs))
    differing = []
    for (name, x), row in zip(arrays.items(), digests.tolist(), strict=True):
        by_device = dict(zip(mesh.devices.flat, row, strict=True))
        for group in group_devices(x):
            outliers = _describe_outliers({d: by_device[d] for d in group})
            if outliers:
                differing.append(f"{name} {outliers}")
    return differing


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
        check_vma=False,  # replicas may differ
    )(*arrays)


def hash_array(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """A hash that differs whenever one element does, and very likely if several do.

    The sum modulo 2**32 of each element, mixed with its index by MurmurHash3's `fmix32`
    (Appleby 2011), which is a bijection.
    """
    x = x.astype("uint8") if x.dtype == bool else x
    unsigned = f"uint{8 * min(x.dtype.itemsize, 4)}"
    h = jax.lax.bitcast_convert_type(x, unsigned).astype("uint32").ravel()
    h += jax.lax.iota("uint32", h.size) * GOLDEN_RATIO
    for factor, shift in FMIX32:
        h = (h ^ h >> shift) * factor
    return (h ^ h >> 16).sum(dtype="uint32")


def find_replicated(tree: PyTree) -> dict[str, Any]:
    """The arrays, by name, of which a shard is on more than one device."""
    return {
        name: x
        for name, x in flatten_by_path(tree).items()
        if any(len(group) > 1 for group in group_devices(x))
    }


def group_devices(x: Any) -> list[list[Any]]:
    """The devices of an array, or of an abstract one, grouped by their shard."""
    found: dict[str, list[Any]] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        found.setdefault(f"{index}", []).append(device)
    return list(found.values())


def _describe_outliers(digests: Mapping[Any, int]) -> str:
    """Devices with another digest than most; empty if there are none."""
    (common, count), *others = Counter(digests.values()).most_common()
    if not others:
        return ""
    if count == others[0][1]:
        return f"differs between {', '.join(map(str, digests))}"
    odd = [device for device, number in digests.items() if number != common]
    return f"on {', '.join(map(str, odd))}"
