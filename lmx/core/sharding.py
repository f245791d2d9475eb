"""Sharding rules: from logical axes of arrays to mesh axes.

A layer names logical axes by letters. `Einsum("BTD,DNH->BTNH", ...)` makes a weight of
letters DNH, which `core/dims.py` names: the parameter has `axes=("embed", "heads",
"head_dim")`, or `("layers", "embed", "heads", "head_dim")` once blocks are stacked.

An experiment sets a mesh, as in `Mesh.fsdp=4 Mesh.tensor=2`: the number of devices
along each mesh axis. `RULES`, changed by `Experiment.rules`, list the mesh axes that
split each logical axis: `embed` over `fsdp`, `heads` over `tensor`, `batch` over
`replica`, `data` and `fsdp`, `length` over `context`, `layers` over `stage`, `vocab`
over `tensor` and `stage`. An axis without a rule is replicated.

`spec` combines the two:

    ("embed", "heads", "head_dim") of (4096, 32, 128)
    -> PartitionSpec('fsdp', 'tensor', None)

Each device then holds 1024 x 16 x 128 elements: device (f, t) of the mesh has embed
1024 f to 1024 (f + 1) and heads 16 t to 16 (t + 1). A mesh axis splits at most one
dimension of an array, and must divide it. `shardings` does this for parameters,
gradients and optimizer states, as all carry the names; batches are sharded likewise.
`jax.jit` is given the shardings of inputs and outputs, and XLA adds the communication:
weights that are sharded over `fsdp` are gathered for a layer and their gradients
scattered (ZeRO-3), products over `tensor` are summed after each pair of matrices
(Megatron), gradients over `data`. With rows sharded over `context`, each device would
gather all keys, unless `backend=@RingAttention()` of the layer rotates them
(`layers/attention/ring.py`). Two axes are explicit: `stage` is a pipeline
(`models/pipeline.py`), and gradients are summed within slices of devices before they
cross `replica`, the slow links between slices (`core/partitioning.py`).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from lmx.config.registry import check_argument, suggest
from lmx.core.dims import LOGICAL

Rules = Mapping[str, tuple[str, ...]]
AnyMesh = jax.sharding.Mesh | AbstractMesh

# Megatron (Shoeybi et al. 2019, arXiv:1909.08053) over `tensor`, the other dimension of
# every matrix over `fsdp` (ZeRO-3; Rajbhandari et al. 2019, arXiv:1910.02054). Outside
# of experts, `expert` extends `fsdp`; for the vocabulary, `stage` extends `tensor`.
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
    """Devices along each mesh axis; their product is the number of devices used."""

    replica: int = 1  # slices, connected by slow links
    data: int | None = None  # None: all devices that are left
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    stage: int = 1

    def __post_init__(self):
        for axis, size in asdict(self).items():
            message = f"mesh axis {axis!r} needs 1 device or more, not {size}."
            check_argument(size is None or size >= 1, message)

    def build(self, devices: Sequence[Any], rules: Rules) -> jax.sharding.Mesh:
        """The mesh on the first of these devices. Refuses axes that no rule uses."""
        sizes = self.resolve_sizes(len(devices), rules)
        used = devices[: math.prod(sizes.values())]
        types = (jax.sharding.AxisType.Auto,) * len(sizes)
        if len({getattr(device, "slice_index", 0) for device in used}) > 1:
            arranged = arrange_hybrid_devices(sizes, used)
            return jax.sharding.Mesh(arranged, tuple(sizes), types)
        shape = tuple(sizes.values())
        return jax.make_mesh(shape, tuple(sizes), types, devices=used)

    def resolve_sizes(self, devices: int, rules: Rules) -> dict[str, int]:
        """Devices along each axis for a number of devices, slowest axis first."""
        sizes = asdict(self) | {"data": self.data or self._infer_data(devices)}
        used = {axis for axes in rules.values() for axis in axes}
        _check_names("logical axis", rules, LOGICAL.values())
        _check_names("mesh axis", used, sizes)
        count = math.prod(sizes.values())
        check_argument(
            count <= devices,
            f"a mesh of {format_mesh(sizes)} needs {count} devices and there are"
            f" {devices}: make an axis smaller.",
        )
        idle = [axis for axis, size in sizes.items() if size > 1 and axis not in used]
        name = f"mesh axis {''.join(idle[:1])!r}"
        check_argument(not idle, f"no rule splits anything over {name}: leave it at 1.")
        return sizes

    def _infer_data(self, devices: int) -> int:
        """The size of `data` if it uses all devices that are left."""
        others = math.prod(size for size in asdict(self).values() if size is not None)
        rest = max(devices // others, 1)
        check_argument(
            devices <= others or devices % others == 0,
            f"{devices} devices are not a multiple of {others}: change the mesh, or set"
            f" Mesh.data={rest} to use {rest * others} of them.",
        )
        return rest


def arrange_hybrid_devices(
    sizes: Mapping[str, int], devices: Sequence[Any]
) -> np.ndarray:
    """Devices of several slices in the shape of a mesh.

    `replica` separates the slices if it is a multiple of their number, as it must be on
    TPUs. Otherwise, as for GPUs of several machines, their order is kept.
    """
    shape = tuple(sizes.values())
    slices = len({device.slice_index for device in devices})
    if sizes["replica"] % slices == 0:
        between = tuple(slices if axis == "replica" else 1 for axis in sizes)
        within = tuple(n // m for n, m in zip(shape, between, strict=True))
        return mesh_utils.create_hybrid_device_mesh(within, between, devices)
    check_argument(
        devices[0].platform != "tpu",
        f"{len(devices)} devices are of {slices} slices, connected by slow links:"
        f" Mesh.replica must be a multiple of {slices}, not {sizes['replica']}.",
    )
    return mesh_utils.create_device_mesh(shape, devices)


def _check_names(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuses rules for names that do not exist."""
    for name in names:
        near = suggest(name, known)
        check_argument(name in known, f"no {kind} is named {name!r}{near}")


def format_mesh(sizes: Mapping[str, int]) -> str:
    """The axes longer than one, as in `data=2 x fsdp=4`."""
    shown = [f"{axis}={size}" for axis, size in sizes.items() if size > 1]
    return " x ".join(shown) or "one device"


def spec(
    axes: Sequence[str], shape: Sequence[int], mesh: AnyMesh, rules: Rules
) -> PartitionSpec:
    """The sharding of an array. A mesh axis splits the first dimension with a rule."""
    taken: set[str] = set()
    split = []
    for axis, size in zip(axes, shape, strict=True):
        wanted = tuple(
            m for m in rules.get(axis, ()) if mesh.shape[m] > 1 and m not in taken
        )
        taken.update(wanted)
        parts = math.prod(mesh.shape[m] for m in wanted)
        check_argument(
            size % parts == 0,
            f"{axis!r} of size {size} cannot be split evenly over mesh axes {wanted}"
            f" ({parts} parts): change the mesh, or drop the rule for {axis!r} to keep"
            " it whole.",
        )
        split.append(wanted or None)
    return PartitionSpec(*split)


def shardings(tree: PyTree, mesh: AnyMesh, rules: Rules) -> PyTree:
    """The shardings of parameters, gradients or an optimizer state, abstract or not.

    Arrays without logical axes are replicated. So is state of an optimizer in another
    shape than its parameter: a factored moment, its (1,) placeholder, or a mask.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = leaf.get_metadata().get("axes", ()) if is_variable(leaf) else ()
        shape = getattr(leaf, "shape", ())
        if len(axes) != len(shape) or shape == (1,):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, spec(axes, shape, mesh, rules))

    return jax.tree.map(place, tree, is_leaf=is_variable)


def with_shardings(shapes: PyTree, placements: PyTree) -> PyTree:
    """The shapes with shardings, of which `placements` has one for each subtree."""

    def place(placement: Sharding, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), part
        )

    return jax.tree.map(place, placements, shapes)


def is_variable(leaf: Any) -> bool:
    """Whether `leaf` is an NNX variable, which `jax.tree` would otherwise traverse."""
    return isinstance(leaf, nnx.Variable)
