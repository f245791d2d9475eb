"""An experiment on a machine, shaped and placed, with no device of it at hand."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import PyTree

from lmx.config.registry import ConfigError
from lmx.core import sharding
from lmx.core.sharding import RULES, Rules, is_variable
from lmx.data.dataset import DatasetConfig
from lmx.data.sampling.schedule import Stage
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.backend import ReferenceAttention
from lmx.layers.moe.dispatch import DroplessDispatch
from lmx.layers.moe.moe import MoE
from lmx.models.decoder import Decoder
from lmx.models.remat import Remat
from lmx.plan.topology import Machine
from lmx.train.experiment import Experiment
from lmx.train.step import TrainState, init_state


class PlannedTensor(NamedTuple):
    """One array of the state, and how it is split."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    spec: PartitionSpec
    local_shape: tuple[int, ...]  # the shape of what one device has
    logical_axes: tuple[
        str, ...
    ]  # names of its dimensions; none where nobody named them

    @property
    def bytes(self) -> int:
        """Of all of it."""
        return math.prod(self.shape) * self.itemsize

    @property
    def local_bytes(self) -> int:
        """Bytes on one device."""
        return math.prod(self.local_shape) * self.itemsize

    @property
    def is_stacked(self) -> bool:
        """Whether its first dimension is of layers."""
        return self.name.startswith("stack.")

    @property
    def layer_kind(self) -> str:
        """The kind of layer that it is of, or which other part of the model."""
        steps = self.name.split(".")
        return ".".join(steps[:5]) if self.is_stacked else steps[0]

    @property
    def mesh_axes(self) -> set[str]:
        """The mesh axes that split it."""
        return {axis for part in self.spec for axis in _axis_names(part)}

    @property
    def gathered_axes(self) -> set[str]:
        """Of these, those over which it comes together for use, if rows are split so.

        Experts stay where they are.
        """
        if "experts" not in self.logical_axes:
            return self.mesh_axes
        return self.mesh_axes - _axis_names(
            self.spec[self.logical_axes.index("experts")]
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is planned. `dataclasses.replace` makes variants of it.

    Attributes:
        sizes: devices along each axis of the mesh, slowest first.
        rows, length: of the global batch, the largest where a schedule changes it.
        chunk: tokens of a row whose logits are held at once; None: of all.
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
        if self.microbatches < 1 or self.sequences % self.microbatches:
            raise ConfigError(
                f"{self.sequences} rows cannot be taken in {self.microbatches} equal parts:"
                " Experiment.microbatches must divide the batch."
            )

    @property
    def mesh(self) -> AbstractMesh:
        """The mesh, of no real devices."""
        return AbstractMesh(tuple(self.sizes.values()), tuple(self.sizes))

    @property
    def devices(self) -> int:
        """How many the mesh uses."""
        return math.prod(self.sizes.values())

    @property
    def compute_dtype(self) -> jnp.dtype:
        """What activations are held in on the machine."""
        return jnp.dtype(
            self.model.precision.compute or self.machine.chip.compute_dtype
        )

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.sequences * self.sequence_length

    @property
    def batch_axes(self) -> list[str]:
        """The mesh axes that split the rows."""
        return [axis for axis in self.rules["batch"] if self.sizes[axis] > 1]

    @property
    def local_tokens(self) -> int:
        """Tokens that one device has of a microbatch."""
        shards = math.prod(self.sizes[axis] for axis in self.batch_axes)
        pieces = math.prod(self.sizes[axis] for axis in self.rules.get("length", ()))
        rows = math.ceil(self.sequences / self.microbatches / shards)
        return rows * self.sequence_length // pieces

    @property
    def logit_fraction(self) -> float:
        """Of these, the share whose logits are held at once."""
        return (self.loss_chunk or self.sequence_length) / self.sequence_length

    def tensors(self, part: str) -> list[PlannedTensor]:
        """The arrays of `params` or `opt_state`."""
        tree = getattr(self.state, part)
        places = sharding.shardings(tree, self.mesh, self.rules)
        leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=is_variable)
        return [
            _to_planned(path, leaf, place)
            for (path, leaf), place in zip(leaves, jax.tree.leaves(places), strict=True)
        ]


def _axis_names(part: str | tuple[str, ...] | None) -> set[str]:
    """The mesh axes that split a dimension."""
    return {part} if isinstance(part, str) else set(part or ())


def _to_planned(
    path: Any, leaf: PyTree, place: jax.sharding.NamedSharding
) -> PlannedTensor:
    [array] = jax.tree.leaves(leaf)
    return PlannedTensor(
        jax.tree_util.keystr(path, simple=True, separator="."),
        array.shape,
        array.dtype.itemsize,
        place.spec,
        place.shard_shape(array.shape),
        leaf.get_metadata().get("axes", ()) if is_variable(leaf) else (),
    )


def build_case(experiment: Experiment, machine: Machine) -> Case:
    """The experiment as its page has it. Reads no data."""
    model = experiment.abstract_model()
    for block, _ in model.stack.kinds():
        if isinstance(block.attention, Attention):
            block.attention.backend = (
                ReferenceAttention()
            )  # for shapes, on the device at hand
        if isinstance(block.mlp, MoE) and isinstance(
            block.mlp.dispatch, DroplessDispatch
        ):
            block.mlp.dispatch = DroplessDispatch()
    optimizer = experiment.optimizer(experiment.schedule.build(experiment.steps))
    rules = dict(RULES) | dict(experiment.rules)
    largest = _largest_stage(experiment.data, experiment.steps)
    return Case(
        machine=machine,
        model=model,
        state=jax.eval_shape(partial(init_state, experiment.model, optimizer, 0)),
        rules=rules,
        sizes=experiment.mesh.resolve_sizes(machine.devices, rules),
        sequences=largest.batch_size,
        sequence_length=largest.sequence_length,
        steps=experiment.steps,
        microbatches=experiment.microbatches,
        remat=model.stack.remat,
        loss_chunk=getattr(experiment.loss, "chunk", None),
    )


def _largest_stage(data: DatasetConfig, steps: int) -> Stage:
    """The stage with the most tokens per step."""
    return max(
        data.schedule.truncate(steps).stages,
        key=lambda stage: stage.batch_size * stage.sequence_length,
    )
