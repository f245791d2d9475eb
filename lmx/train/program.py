"""An experiment, opened: checked, shaped and placed on its mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core import partitioning, sharding
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset
from lmx.data.sampling.schedule import BatchSchedule
from lmx.models.decoder import Decoder
from lmx.run.metadata import mesh_axes
from lmx.train.loop import StepFn
from lmx.train.step import Metrics, StepConfig, TrainState


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """One training step over a mesh, before there is a number.

    Attributes:
        model: without its numbers.
        take: one step by the recipe.
        init: makes the state of step 0.
        places: where each part of a state lives.
    """

    model: Decoder
    recipe: StepConfig
    step_fn: Callable[[StepConfig, TrainState, Batch], tuple[TrainState, Metrics]]
    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    init: Callable[[], TrainState]
    shardings: TrainState

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and places of a state."""
        return sharding.with_shardings(jax.eval_shape(self.init), self.shardings)

    def jit_step(self, batch: Batch) -> Any:
        """The step for batches of that shape, jitted; it consumes its state."""
        take = partial(self.step_fn, self.recipe)
        return jax.jit(
            partitioning.with_partitioning(self.mesh, self.rules, take),
            in_shardings=(self.shardings, batch_sharding(batch, self.mesh, self.rules)),
            out_shardings=(self.shardings, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )

    def lower(self, rows: int, length: int) -> jax.stages.Lowered:
        """The step for a batch of that shape, ready to be compiled."""
        kinds = ("int32", "int32", "float32", "int32", "int32")
        shapes: Any = [jax.ShapeDtypeStruct((rows, length), kind) for kind in kinds]
        batch = Batch(*shapes)
        return self.jit_step(batch).lower(self.abstract_state, batch)


@dataclass(frozen=True)
class RunContext:
    """What training, and every hook, needs to know.

    Attributes:
        graph: the model without its parameters; `nnx.merge(graph, params)` has both.
        places: where each part of a state lives.
        init: the state of step 0, born in its places.
        step: one compiled training step, which consumes its state.
        course: the shape of every step.
        token_flops: FLOPs of a token, forward and backward, in rows of each length.
    """

    steps: int
    seed: int
    data: Dataset
    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    graph: nnx.GraphDef
    shardings: TrainState
    init: Callable[[], TrainState]
    step: StepFn
    batch_schedule: BatchSchedule
    token_flops: Mapping[int, float]

    def count_tokens(self, done: int) -> int:
        """Tokens of the first `done` steps, padding among them."""
        return self.batch_schedule.count_tokens(done)

    def count_flops(self, done: int) -> float:
        """FLOPs of the first `done` steps."""
        return sum(
            (
                stage.batch_size
                * stage.sequence_length
                * steps
                * self.token_flops[stage.sequence_length]
                for stage, steps in self.batch_schedule.split_steps(done)
            ),
            start=0.0,
        )

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and places of a state."""
        return sharding.with_shardings(jax.eval_shape(self.init), self.shardings)

    def describe(self) -> dict[str, Any]:
        """What the metadata of a run has of it."""
        params = jax.tree.leaves(self.abstract_state().params)
        return {
            "seed": self.seed,
            "data": dict(self.data.info.fingerprint),
            "parameters": sum(leaf.size for leaf in params),
            "tokens": self.count_tokens(self.steps),
            "flops": self.count_flops(self.steps),
            "mesh": mesh_axes(self.mesh),
        }

    def put_batch(self, batch: Batch) -> Batch:
        """A batch that this process has whole on the devices, as the rules say."""
        return jax.device_put(batch, batch_sharding(batch, self.mesh, self.rules))

    def load_batch(self, data: Dataset, seed: int, step: int) -> Batch:
        """The batch of that step on the devices, its rows split as the rules say.

        This process reads the rows of its own devices, and no other.
        """
        shape = data.info.schedule.stage_at(step)[1:]
        place = _batch_sharding(shape, self.mesh, self.rules)
        parts = [data.batch_at(seed, step, rows) for rows in local_rows(place, shape)]
        own = jax.tree.map(lambda *part: np.concatenate(part), *parts)
        return jax.make_array_from_process_local_data(place, own, shape)


def abstract_batch(data: Dataset, step: int = 0) -> Batch:
    """The shapes and dtypes of the batch of that step, of which one row is read."""
    rows = data.info.schedule.stage_at(step).batch_size
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
        data.batch_at(0, step, slice(1)),
    )


def batch_sharding(
    batch: Batch, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    """Where the rows of a batch of this shape go."""
    return _batch_sharding(batch.tokens.shape, mesh, rules)


def _batch_sharding(
    shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    return NamedSharding(mesh, sharding.spec(("batch", "length"), shape, mesh, rules))


def local_rows(place: NamedSharding, shape: tuple[int, ...]) -> list[slice]:
    """The rows that devices of this process hold, in order and as few slices as can be.

    Where several processes share rows, as over `tensor` or `context`, each has them.
    """
    found = place.addressable_devices_indices_map(shape).values()
    rows = sorted({index[0].indices(shape[0])[:2] for index in found if index})
    own = rows[:1]
    for start, stop in rows[1:]:
        if start == own[-1][1]:
            own[-1] = (own[-1][0], stop)
        else:
            own.append((start, stop))
    return [slice(*pair) for pair in own]
