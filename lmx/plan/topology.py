"""Machines by name: the specifications of chips and their networks, and prices."""

import difflib
import math
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from lmx.config.registry import check_argument
from lmx.core.hardware import PEAK_FLOPS

GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of device, as its maker specifies it.

    Attributes:
        platform: as jax names it.
        flops: dense FLOP/s in its compute dtype.
        memory: bytes.
        bandwidth: bytes/s between a chip and its memory.
        link_bandwidth: bytes/s out of a chip over all fast links.
        torus_dims: dimensions of the torus of fast links; 1 behind a switch.
        max_group: the most devices with fast links between them.
        network_bandwidth: bytes/s between a device and other groups.
        units: TPU cores of a chip, if the number in a machine's name counts these.
        float32_rate: the fraction of `flops` that float32 products reach.
        clock: cycles/s of the compiler's estimates.
        mxu_size: rows and columns of the matrix multiplier.
        price: US dollars for an hour, a list price on demand in round figures, as of
            2026-11-21: cloud.google.com/tpu/pricing, and providers of GPU servers.
    """

    platform: str
    flops: float
    memory: float
    bandwidth: float
    link_bandwidth: float
    torus_dims: int
    max_group: int
    network_bandwidth: float
    price: float
    units: int = 1
    compute_dtype: str = "bfloat16"
    float32_rate: float = 1.0
    clock: float | None = None
    mxu_size: int = 128


# JAX multiplies float32 in one bfloat16 pass on TPUs, and in TF32 on GPUs:
# docs.jax.dev/en/latest/201/precision.html.
# NVIDIA H100 SXM data sheet: 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways, half as many
# FLOP/s in TF32; DGX H100: 400 Gbit/s of network for each.
_H100 = Chip(
    platform="gpu",
    flops=PEAK_FLOPS["NVIDIA H100 80GB HBM3"],
    memory=80e9,
    bandwidth=3.35e12,
    link_bandwidth=450e9,
    torus_dims=1,
    max_group=8,
    network_bandwidth=50e9,
    price=6.88,
    float32_rate=0.5,
)
# A clock is the peak over what all multipliers do in a cycle: 4 of 128 x 128 on v5e, 8
# on v5p, and 4 times 65536 products on v6e, whose multipliers are 256 x 256.
CHIPS = {
    # cloud.google.com/tpu/docs/v6e, its column v5e: 1600 Gbit/s of links, 6.4 Tbit/s of
    # network for a pod of 256.
    "v5e": Chip(
        platform="tpu",
        flops=PEAK_FLOPS["TPU v5e"],
        memory=16 * GIB,
        bandwidth=800e9,
        link_bandwidth=200e9,
        torus_dims=2,
        max_group=256,
        network_bandwidth=3.125e9,
        price=1.20,
        clock=1.5e9,
    ),
    # cloud.google.com/tpu/docs/v5p: 1200 GB/s of links, both ways; 50 Gbit/s of
    # network; 6144 chips for the largest job. Names count its two cores.
    "v5p": Chip(
        platform="tpu",
        flops=PEAK_FLOPS["TPU v5p"],
        memory=95 * GIB,
        bandwidth=2765e9,
        link_bandwidth=600e9,
        torus_dims=3,
        max_group=6144,
        network_bandwidth=6.25e9,
        price=4.20,
        units=2,
        clock=1.75e9,
    ),
    # cloud.google.com/tpu/docs/v6e: 3200 Gbit/s of links, 25.6 Tbit/s for a pod of 256.
    "v6e": Chip(
        platform="tpu",
        flops=PEAK_FLOPS["TPU v6e"],
        memory=32 * GIB,
        bandwidth=1600e9,
        link_bandwidth=400e9,
        torus_dims=2,
        max_group=256,
        network_bandwidth=12.5e9,
        price=2.70,
        clock=1.75e9,
        mxu_size=256,
    ),
    "h100": _H100,
    # NVIDIA H200 SXM data sheet: 141 GB, 4.8 TB/s; the rest as H100.
    "h200": replace(
        _H100,
        flops=PEAK_FLOPS["NVIDIA H200"],
        memory=141e9,
        bandwidth=4.8e12,
        price=7.91,
    ),
    # Two cores of an AMD EPYC with 24 GiB: 130 GFLOP/s of float32 measured with XLA;
    # the bandwidths are a guess of what such a share of a machine has.
    "cpu": Chip(
        platform="cpu",
        flops=130e9,
        memory=24 * GIB,
        bandwidth=20e9,
        link_bandwidth=10e9,
        torus_dims=1,
        max_group=1,
        network_bandwidth=1e9,
        price=0.0,
        compute_dtype="float32",
    ),
}

# By jax's device_kind.
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
    """Groups of chips with fast links inside, and a network between groups.

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
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        return self.group * self.groups

    @property
    def topology(self) -> str | None:
        """The compiler's name of a group, as in `v5p:4x4x8`; None if it has none."""
        dims, power = self.chip.torus_dims, self.group.bit_length() - 1
        if dims == 1 or self.group != 2**power:
            return None
        each, more = divmod(power, dims)  # sides as equal as possible, short ones first
        sides = [2**each] * (dims - more) + [2 ** (each + 1)] * more
        if dims == 3 and self.group < 8:  # a host of a three-dimensional torus is 2x2x1
            sides = sides[::-1]
        return f"{self.kind}:{'x'.join(map(str, sides))}"

    def estimate_gather(self, whole: float, count: int, stride: int) -> float:
        """Seconds for `count` devices, `stride` apart, to gather `whole` bytes.

        Each group gathers over its links, then over the network. A gather over fewer
        devices than the group uses as many dimensions of the torus as its share of the
        group's logarithm, at least 1. A reduce-scatter takes as long, an all-reduce
        twice as long.
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
    """The devices of this run, one group for each GPU server.

    Raises ValueError for unknown devices.
    """
    devices = jax.devices()
    kind = DEVICE_KINDS.get(devices[0].device_kind)
    if kind is None:
        raise ValueError(
            f"devices of kind {devices[0].device_kind!r} are unknown: name a machine,"
            f" as in --plan v5p-128. Chips are {', '.join(CHIPS)}."
        )
    group = min(len(devices), CHIPS[kind].max_group)
    name = f"{len(devices)} x {devices[0].device_kind}"
    return Machine(name=name, kind=kind, group=group, groups=len(devices) // group)


def parse_machine(name: str) -> Machine:
    """Parses a name like v5e-256, 4xv5e-256, h100-8x4 or cpu."""
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(?:-(\d+)(?:x(\d+))?)?", name)
    kind = match[2] if match else name
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no machine is named {name!r}: {kind!r} is not a chip; did you mean"
            f" {near!r}?"
            f" Chips are {', '.join(CHIPS)}, as in v5e-256, 4xv5e-256 (slices),"
            " h100-8x4 (servers) or cpu."
        )
    assert match
    chip = CHIPS[kind]
    slices, _, count, servers = match.groups()
    group, rest = divmod(int(count or chip.units), chip.units)
    groups = int(slices or 1) * int(servers or 1)
    check_argument(
        not rest and group and groups,
        f"{name!r} names no machine: the number after {kind!r} must be a multiple"
        f" of {chip.units}, the units of a chip, and none may be 0.",
    )
    if group > chip.max_group:
        several = f"{-(-group // chip.max_group)}x{kind}-{chip.max_group * chip.units}"
        raise ValueError(
            f"{name!r} asks for {group} chips in one group and {kind} has groups of"
            f" at most {chip.max_group}: use several, as in {several!r}."
        )
    return Machine(name=name, kind=kind, group=group, groups=groups)


def load_price(kind: str, file: Path | None = None) -> float:
    """US dollars for an hour of a chip, as in a TOML file or in `CHIPS`."""
    if file is None:
        return CHIPS[kind].price
    example = f"give it lines like '{kind} = 4.20', US dollars for an hour of a chip."
    try:
        price: Any = tomllib.loads(file.read_text(encoding="utf-8")).get(kind)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: {error}: {example}") from error
    is_number = isinstance(price, int | float) and not isinstance(price, bool)
    if not (is_number and 0 <= price < math.inf):
        raise ValueError(f"{file} has no price of {kind}: {example}")
    return price
