"""Where logical axes meet the mesh: from a letter to a slice of a device.

A layer writes letters. `Einsum("BTD,DNH->BTNH", ...)` makes a weight of letters DNH,
and `core/dims.py` names them: the parameter carries `axes=("embed", "heads",
"head_dim")`, or `("layers", "embed", "heads", "head_dim")` once blocks are stacked.
That is all a layer says; it knows neither rules nor mesh.

An experiment names a mesh, as in `Mesh.fsdp=4 Mesh.tensor=2`: how many devices stand
along each mesh axis. `RULES`, under `Experiment.rules`, say which mesh axes split which
logical axis: `embed` over `fsdp`, `heads` over `tensor`, `batch_size` over `replica`, `data`
and `fsdp`, `length` over `context`, `layers` over `stage`, the vocabulary over `tensor`
and `stage`. What no rule names is whole on every device.

`spec` puts the two together, axis by axis, as in

    ("embed", "heads", "head_dim") of (4096, 32, 128)
    -> PartitionSpec('fsdp', 'tensor', None)

so that each device holds 1024 x 16 x 128 of them: the device at place (f, t) of the
mesh has embed rows 1024 f to 1024 (f + 1) and heads 16 t to 16 (t + 1). A mesh axis
splits one dimension of an array at most; one that does not divide it is an error.
`shardings` does this for every parameter, gradient and optimizer state alike, since all
carry the names; rows of a batch are split likewise. `jax.jit` is told where its inputs
and outputs live, and XLA finds what must move between devices: weights split over
`fsdp` are gathered for a layer and their gradients scattered back (ZeRO-3), products
over a `tensor` axis are summed behind each pair of matrices (Megatron), gradients over
`data`. Of a row split over `context` each device would gather all keys, unless
`Attention.backend=@RingAttention()` passes them on (`layers/attention/ring.py`). Two axes are led
by hand: rows pass the layers of one `stage` after the other (`models/pipeline.py`), and
gradients are added up within a slice of devices before they go over `replica`, the slow
links between slices (`core/spread.py`).
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lmx.core.dims import LOGICAL

Rules = Mapping[str, tuple[str, ...]]
AnyMesh = jax.sharding.Mesh | AbstractMesh  # the second of devices that are not at hand

# Megatron splits (Shoeybi et al. 2019, arXiv:1909.08053) over `tensor`, the rest of
# every matrix over `fsdp` (ZeRO-3; Rajbhandari et al. 2019, arXiv:1910.02054). What is
# no expert treats `expert` as more of `fsdp`; the vocabulary, `stage` as of `tensor`.
RULES: Rules = MappingProxyType({
    "batch": ("replica", "data", "fsdp", "expert"),
    "length": ("context",),
    "vocab": ("tensor", "stage"),
    "embed": ("fsdp", "expert"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "experts": ("expert",),
    "layers": ("stage",),
    "replicas": ("replica",),
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices stand along each axis; their product is the devices used."""

    replica: int = 1  # slices, over slow links
    data: int | None = None  # None: every device that the other axes leave
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    stage: int = 1

    def __post_init__(self):
        for axis, size in asdict(self).items():
            if size is not None and size < 1:
                raise ValueError(
                    f"mesh axis {axis!r} needs 1 device or more, not {size}."
                )

    def build(self, devices: Sequence[Any], rules: Rules) -> jax.sharding.Mesh:
        """The mesh over the first devices there are, if the rules use all its axes."""
        sizes = self.resolve_sizes(len(devices), rules)
        used = devices[: math.prod(sizes.values())]
        types = (jax.sharding.AxisType.Auto,) * len(sizes)
        if len({getattr(device, "slice_index", 0) for device in used}) > 1:
            return jax.sharding.Mesh(
                arrange_hybrid_devices(sizes, used), tuple(sizes), types
            )
        shape = tuple(sizes.values())
        return jax.make_mesh(shape, tuple(sizes), types, devices=used)

    def resolve_sizes(self, devices: int, rules: Rules) -> dict[str, int]:
        """How many of so many devices stand along each axis, slowest first."""
        sizes = asdict(self) | {"data": self.data or self._infer_data(devices)}
        for axis, onto in rules.items():
            _check_name("logical axis", axis, LOGICAL.values())
            for mesh_axis in onto:
                _check_name("mesh axis", mesh_axis, sizes)
        count = math.prod(sizes.values())
        if count > devices:
            raise ValueError(
                f"a mesh of {format_mesh(sizes)} needs {count} devices and there are"
                f" {devices}: make an axis smaller."
            )
        used = {axis for axes in rules.values() for axis in axes}
        idle = [axis for axis, size in sizes.items() if size > 1 and axis not in used]
        if idle:
            raise ValueError(
                f"no rule splits anything over mesh axis {idle[0]!r}: leave it at 1."
            )
        return sizes

    def _infer_data(self, devices: int) -> int:
        """How many stand along `data` if it takes every device the others leave."""
        others = math.prod(size for size in asdict(self).values() if size is not None)
        rest = max(devices // others, 1)
        if devices % others and devices > others:
            raise ValueError(
                f"{devices} devices do not part into groups of {others}: change the"
                f" mesh, or set Mesh.data={rest} to use {rest * others} of them."
            )
        return rest


def arrange_hybrid_devices(
    sizes: Mapping[str, int], devices: Sequence[Any]
) -> np.ndarray:
    """The devices of several slices along the axes of a mesh; slow links join slices.

    `replica` tells slices apart where it is a multiple of their number, as on TPUs it
    must be. Elsewhere, as on GPUs of several machines, devices come in their order.
    """
    shape = tuple(sizes.values())
    slices = len({device.slice_index for device in devices})
    if sizes["replica"] % slices == 0:
        between = tuple(slices if axis == "replica" else 1 for axis in sizes)
        within = tuple(n // m for n, m in zip(shape, between, strict=True))
        return mesh_utils.create_hybrid_device_mesh(within, between, devices)
    if devices[0].platform == "tpu":
        raise ValueError(
            f"{len(devices)} devices are of {slices} slices, which slow links join:"
            f" Mesh.replica must be a multiple of {slices}, not {sizes['replica']}."
        )
    return mesh_utils.create_device_mesh(shape, devices)


def _check_name(kind: str, name: str, names: Collection[str]) -> None:
    """Refuses a name that a rule would use in vain."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ValueError(f"no {kind} is named {name!r}; did you mean {near!r}?")


def format_mesh(sizes: Mapping[str, int]) -> str:
    """The axes longer than one, as in `data=2 x fsdp=4`."""
    shown = [f"{axis}={size}" for axis, size in sizes.items() if size > 1]
    return " x ".join(shown) or "one device"


def spec(
    axes: Sequence[str], shape: Sequence[int], mesh: AnyMesh, rules: Rules
) -> PartitionSpec:
    """How an array with these logical axes is split.

    A mesh axis splits one dimension of an array at most: the first that asks has it.
    """
    taken: set[str] = set()
    split = []
    for axis, size in zip(axes, shape, strict=True):
        wanted = tuple(
            m for m in rules.get(axis, ()) if mesh.shape[m] > 1 and m not in taken
        )
        taken.update(wanted)
        parts = math.prod(mesh.shape[m] for m in wanted)
        if size % parts:
            raise ValueError(
                f"{axis!r} of size {size} cannot be split evenly over mesh axes"
                f" {wanted} ({parts} parts): change the mesh, or drop the rule for"
                f" {axis!r} to keep it whole."
            )
        split.append(wanted or None)
    return PartitionSpec(*split)


def shardings(tree: PyTree, mesh: AnyMesh, rules: Rules) -> PyTree:
    """Where each parameter of `draw_tree` lives; what carries no axes is copied everywhere.

    Serves parameters, gradients and optimizer state alike, abstract or real. What an
    optimizer keeps for a parameter without its shape is copied everywhere too: a
    factored moment, the (1,) in place of one, a mask.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = leaf.get_metadata().get("axes", ()) if is_variable(leaf) else ()
        shape = getattr(leaf, "shape", ())
        if len(axes) != len(shape) or shape == (1,):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, spec(axes, shape, mesh, rules))

    return jax.tree.map(place, tree, is_leaf=is_variable)


def with_shardings(shapes: PyTree, places: PyTree) -> PyTree:
    """The shapes, each with the place that `shardings` found for it."""

    def inside(place: NamedSharding, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), part
        )

    return jax.tree.map(inside, places, shapes)


def is_variable(leaf: Any) -> bool:
    """Whether `leaf` is an NNX variable, which JAX by itself would look into."""
    return isinstance(leaf, nnx.Variable)
