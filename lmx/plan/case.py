"""A training experiment on a machine, as shapes and shardings without its devices."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from lmx.config.registry import ConfigError
from lmx.core import sharding
from lmx.core.sharding import RULES, Rules, is_variable
from lmx.models.decoder import Decoder
from lmx.models.remat import Remat
from lmx.plan.topology import Machine
from lmx.train.experiment import Experiment
from lmx.train.step import TrainState

PARTS = ("params", "opt_state", "frozen.params", "frozen.loss")  # of a `TrainState`
WEIGHTS = ("params", "frozen.params")


class PlannedTensor(NamedTuple):
    """One array of the training state and its sharding.

    Attributes:
        local_shape: the shape of a device's shard.
        logical_axes: names of its dimensions; empty if it has none.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    spec: PartitionSpec
    local_shape: tuple[int, ...]
    logical_axes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def local_size(self) -> int:
        return math.prod(self.local_shape)

    @property
    def local_bytes(self) -> int:
        return self.local_size * self.itemsize

    @property
    def is_stacked(self) -> bool:
        """Whether its first dimension is the layers."""
        return self.name.startswith("stack.")

    @property
    def layer_kind(self) -> str:
        """The kind of layer, or the other part of the model, that it belongs to."""
        path = self.name.split(".")
        return ".".join(path[:5]) if self.is_stacked else path[0]

    @property
    def mesh_axes(self) -> set[str]:
        return set(jax.tree.leaves(tuple(self.spec)))

    @property
    def gathered_axes(self) -> set[str]:
        """The mesh axes over which it is gathered for use, if they also shard rows.

        Experts are not gathered.
        """
        pairs = zip(self.spec, self.logical_axes, strict=False)
        experts = [part for part, axis in pairs if axis == "experts"]
        return self.mesh_axes - {*jax.tree.leaves(experts)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An experiment on a machine; `dataclasses.replace` makes variants.

    Raises ConfigError for a mesh that does not divide the batch or a parameter.

    Attributes:
        sizes: devices along each mesh axis, slowest first.
        sequences, sequence_length: of the global batch, the largest of its schedule.
        loss_chunk: tokens of a row whose logits are in memory at once; None: all.
    """

    machine: Machine
    model: Decoder
    state: TrainState
    rules: Rules
    sizes: dict[str, int]
    sequences: int
    sequence_length: int
    steps: int
    microbatches: int
    remat: Remat
    loss_chunk: int | None = None

    def __post_init__(self):
        shape = (self.sequences, self.sequence_length)
        sharding.spec(("batch", "length"), shape, self.mesh, self.rules)
        self.tensors("params")  # refuses what does not divide
        if self.microbatches < 1 or self.sequences % self.microbatches:
            raise ConfigError(
                f"{self.sequences} sequences do not divide into {self.microbatches}"
                " microbatches: Experiment.microbatches must divide the batch size."
            )

    @property
    def mesh(self) -> AbstractMesh:
        return AbstractMesh(tuple(self.sizes.values()), tuple(self.sizes))

    @property
    def devices(self) -> int:
        """How many devices the mesh uses."""
        return math.prod(self.sizes.values())

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations on the machine."""
        return jnp.dtype(
            self.model.precision.compute or self.machine.chip.compute_dtype
        )

    @property
    def storage_dtype(self) -> jnp.dtype:
        """The dtype of saved activations: a CPU has no arithmetic in bfloat16."""
        return jnp.promote_types(self.compute_dtype, self.machine.chip.compute_dtype)

    @property
    def peak_flops(self) -> float:
        """Peak FLOP/s of a device in that dtype."""
        chip = self.machine.chip
        return chip.flops * (
            chip.float32_rate if self.compute_dtype.itemsize > 2 else 1
        )

    @property
    def tokens(self) -> int:
        return self.sequences * self.sequence_length

    @property
    def batch_axes(self) -> list[str]:
        """The mesh axes that shard the rows."""
        return [axis for axis in self.rules["batch"] if self.sizes[axis] > 1]

    @property
    def local_tokens(self) -> int:
        """Tokens of one microbatch on one device."""
        shards = math.prod(self.sizes[axis] for axis in self.batch_axes)
        rows = math.ceil(self.sequences / self.microbatches / shards)
        return rows * self.local_length

    @property
    def local_length(self) -> int:
        """Tokens of a row on one device."""
        chunks = math.prod(self.sizes[axis] for axis in self.rules.get("length", ()))
        return self.sequence_length // chunks

    @property
    def logit_fraction(self) -> float:
        """The fraction of those tokens whose logits are in memory at once."""
        return (self.loss_chunk or self.sequence_length) / self.sequence_length

    def tensors(self, *parts: str) -> list[PlannedTensor]:
        """The arrays of those of `PARTS`."""
        return [tensor for part in parts for tensor in self._tensors[part]]

    @cached_property
    def _tensors(self) -> dict[str, list[PlannedTensor]]:
        return {part: [*self._iter_tensors(part)] for part in PARTS}

    def _iter_tensors(self, part: str) -> Iterator[PlannedTensor]:
        tree = attrgetter(part)(self.state)
        shardings = jax.tree.leaves(sharding.shardings(tree, self.mesh, self.rules))
        leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=is_variable)
        for (path, leaf), own in zip(leaves, shardings, strict=True):
            [array] = jax.tree.leaves(leaf)
            yield PlannedTensor(
                jax.tree_util.keystr(path, simple=True, separator="."),
                array.shape,
                array.dtype.itemsize,
                own.spec,
                own.shard_shape(array.shape),
                leaf.get_metadata().get("axes", ()) if is_variable(leaf) else (),
            )


def build_case(experiment: Experiment, machine: Machine) -> Case:
    """The experiment with the settings of its config. Reads no data."""
    model = experiment.abstract_model()
    rules = dict(RULES) | dict(experiment.rules)
    stages = experiment.data.schedule.truncate(experiment.steps).stages
    largest = max(stages, key=lambda stage: stage.batch_size * stage.sequence_length)
    return Case(
        machine=machine,
        model=model,
        state=jax.eval_shape(experiment.make_init()),
        rules=rules,
        sizes=experiment.mesh.resolve_sizes(machine.devices, rules),
        sequences=largest.batch_size,
        sequence_length=largest.sequence_length,
        steps=experiment.steps,
        microbatches=experiment.microbatches,
        remat=model.stack.remat,
        loss_chunk=getattr(experiment.loss, "chunk", None),
    )
