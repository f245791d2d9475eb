"""Machines by name: what their chips can do, and how they are joined."""

import difflib
import math
import re
from dataclasses import dataclass

import jax

from lmx.core.hardware import PEAK_FLOPS

GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of device, by what its maker published.

    Attributes:
        flops: dense FLOP/s of its compute dtype.
        memory: bytes.
        bandwidth: bytes/s between a chip and its memory.
        link: bytes/s out of a chip over all its fast links.
        dims: dimensions of the torus that fast links make; 1 behind a switch.
        joined: the most devices that fast links join.
        network: bytes/s of each device to those beyond.
        counted: what its name counts for each chip.
        clock: cycles a second, of which its compiler counts.
        side: rows and columns of what multiplies matrices.
    """

    flops: float
    memory: float
    bandwidth: float
    link_bandwidth: float
    torus_dims: int
    max_group: int
    network_bandwidth: float
    units: int = 1
    compute_dtype: str = "bfloat16"
    clock: float | None = None
    mxu_size: int = 128


# A clock is the peak over what all multipliers do in a cycle: 4 of 128 x 128 on v5e, 8
# on v5p, and 4 times 65536 products on v6e, whose multipliers are 256 x 256.
CHIPS = {
    # cloud.google.com/tpu/docs/v6e, its column v5e: 1600 Gbit/s of links, 6.4 Tbit/s of
    # network for a pod of 256.
    "v5e": Chip(
        flops=PEAK_FLOPS["TPU v5e"],
        memory=16 * GIB,
        bandwidth=800e9,
        link_bandwidth=200e9,
        torus_dims=2,
        max_group=256,
        network_bandwidth=3.125e9,
        clock=1.5e9,
    ),
    # cloud.google.com/tpu/docs/v5p: 1200 GB/s of links, both ways; 50 Gbit/s of
    # network; 6144 chips for the largest job. Names count its two cores.
    "v5p": Chip(
        flops=PEAK_FLOPS["TPU v5p"],
        memory=95 * GIB,
        bandwidth=2765e9,
        link_bandwidth=600e9,
        torus_dims=3,
        max_group=6144,
        network_bandwidth=6.25e9,
        units=2,
        clock=1.75e9,
    ),
    # cloud.google.com/tpu/docs/v6e: 3200 Gbit/s of links, 25.6 Tbit/s for a pod of 256.
    "v6e": Chip(
        flops=PEAK_FLOPS["TPU v6e"],
        memory=32 * GIB,
        bandwidth=1600e9,
        link_bandwidth=400e9,
        torus_dims=2,
        max_group=256,
        network_bandwidth=12.5e9,
        clock=1.75e9,
        mxu_size=256,
    ),
    # NVIDIA H100 SXM data sheet: 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100:
    # 400 Gbit/s of network for each.
    "h100": Chip(
        flops=PEAK_FLOPS["NVIDIA H100 80GB HBM3"],
        memory=80e9,
        bandwidth=3.35e12,
        link_bandwidth=450e9,
        torus_dims=1,
        max_group=8,
        network_bandwidth=50e9,
    ),
    # NVIDIA H200 SXM data sheet: 141 GB, 4.8 TB/s; the rest as H100.
    "h200": Chip(
        flops=PEAK_FLOPS["NVIDIA H200"],
        memory=141e9,
        bandwidth=4.8e12,
        link_bandwidth=450e9,
        torus_dims=1,
        max_group=8,
        network_bandwidth=50e9,
    ),
    # Two cores of an AMD EPYC with 24 GiB: 130 GFLOP/s of float32 measured with XLA;
    # the bandwidths are a guess of what such a share of a machine has.
    "cpu": Chip(
        flops=130e9,
        memory=24 * GIB,
        bandwidth=20e9,
        link_bandwidth=10e9,
        torus_dims=1,
        max_group=1,
        network_bandwidth=1e9,
        compute_dtype="float32",
    ),
}


# By the name that jax gives them.
DEVICE_KINDS = {
    "cpu": "cpu",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "TPU v5": "v5p",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Groups of chips with fast links inside and a network between them.

    Attributes:
        group: devices of a slice or of a GPU server.
        groups: how many there are.
    """

    name: str
    kind: str
    group: int
    groups: int = 1

    @property
    def chip(self) -> Chip:
        """What each device is."""
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        """How many there are in all."""
        return self.group * self.groups

    @property
    def topology(self) -> str | None:
        """A group as its compiler names it, as in `v5p:4x4x8`; None: it has no name."""
        if self.chip.torus_dims == 1:
            return None
        sides = _torus_sides(self.group, self.chip.torus_dims)
        return f"{self.kind}:{'x'.join(map(str, sides))}" if sides else None

    def estimate_gather(self, whole: float, count: int, stride: int) -> float:
        """Seconds until `count` devices that share `whole` bytes each have them all.

        They stand `stride` apart. Each group gathers over its links what its members
        then pass on over the network, one after the other. A gather over fewer devices
        than a group has uses as many dimensions of the torus as its share of the
        group's logarithm, 1 at least. A reduction that scatters takes as long; one that
        leaves the sum everywhere, twice that.
        """
        near = max(1, min(count, self.group // stride))
        far = count / near
        dims = self.chip.torus_dims
        if near > 1:
            used = dims * math.log(near) / math.log(self.group)
            dims = max(1, round(used)) / dims
        fast = whole * (1 - 1 / near) / (self.chip.link_bandwidth * dims)
        return fast + whole * (1 - 1 / far) / near / self.chip.network_bandwidth


def detect_machine() -> Machine:
    """The devices that jax finds here, in one group for each process of a GPU server.

    Raises ValueError for devices that nothing is known of.
    """
    devices = jax.devices()
    kind = DEVICE_KINDS.get(devices[0].device_kind)
    if kind is None:
        raise ValueError(
            f"nothing is known of devices like {devices[0].device_kind!r}: name a"
            f" machine, as in --plan v5p-128. There are {', '.join(CHIPS)}."
        )
    group = min(len(devices), CHIPS[kind].max_group)
    name = f"{len(devices)} x {devices[0].device_kind}"
    return Machine(name=name, kind=kind, group=group, groups=len(devices) // group)


def _torus_sides(group: int, dims: int) -> list[int] | None:
    """A torus as near to a cube as its number, a power of two, allows, short first."""
    power = group.bit_length() - 1
    if group != 2**power:
        return None
    each, more = divmod(power, dims)
    sides = [2**each] * (dims - more) + [2 ** (each + 1)] * more
    # The smallest block of a three-dimensional torus is a host of 2 x 2 x 1.
    return [*sides[::-1]] if dims == 3 and group < 8 else sides


def parse_machine(name: str) -> Machine:
    """The machine of a name as in v5e-256, 4xv5e-256, h100-8x4 or cpu."""
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(?:-(\d+)(?:x(\d+))?)?", name)
    kind = found[2] if found else name
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no machine is named {name!r}: {kind!r} is no chip; did you mean {near!r}?"
            f" There are {', '.join(CHIPS)}, as in v5e-256, 4xv5e-256 (slices),"
            " h100-8x4 (servers) or cpu."
        )
    assert found
    chip = CHIPS[kind]
    before, _, count, after = found.groups()
    group, rest = divmod(int(count or chip.units), chip.units)
    groups = int(before or 1) * int(after or 1)
    if rest or not group or not groups:
        raise ValueError(
            f"{name!r} names no machine: the number after {kind!r} must be a multiple"
            f" of {chip.units}, which each chip counts, and none may be 0."
        )
    if group > chip.max_group:
        several = f"{-(-group // chip.max_group)}x{kind}-{chip.max_group * chip.units}"
        raise ValueError(
            f"{name!r} asks for {group} chips in one piece and {kind} joins"
            f" {chip.max_group} at most: take several, as in {several!r}."
        )
    return Machine(name=name, kind=kind, group=group, groups=groups)
