"""An experiment, opened: checked, shaped and placed on its mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core import sharding, spread
from lmx.data.batches import Batch, Rows
from lmx.data.rows.numbered import course_of
from lmx.data.rows.schedule import Course
from lmx.models.decoder import Decoder
from lmx.train.loop import Step
from lmx.train.step import Metrics, Recipe, TrainState


@dataclass(frozen=True, kw_only=True)
class Program:
    """One training step over a mesh, before there is a number.

    Attributes:
        model: without its numbers.
        take: one step by the recipe.
        init: makes the state of step 0.
        places: where each part of a state lives.
    """

    model: Decoder
    recipe: Recipe
    take: Callable[[Recipe, TrainState, Batch], tuple[TrainState, Metrics]]
    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    init: Callable[[], TrainState]
    places: TrainState

    @property
    def state(self) -> TrainState:
        """Shapes, dtypes and places of a state."""
        return sharding.placed(jax.eval_shape(self.init), self.places)

    def step(self, batch: Batch) -> Any:
        """The step for batches of that shape, jitted; it consumes its state."""
        take = partial(self.take, self.recipe)
        return jax.jit(
            spread.traced_for(self.mesh, self.rules, take),
            in_shardings=(self.places, rows_sharding(batch, self.mesh, self.rules)),
            out_shardings=(self.places, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )

    def lower(self, rows: int, length: int) -> jax.stages.Lowered:
        """The step for a batch of that shape, ready to be compiled."""
        kinds = ("int32", "int32", "float32", "int32", "int32")
        shapes: Any = [jax.ShapeDtypeStruct((rows, length), kind) for kind in kinds]
        batch = Batch(*shapes)
        return self.step(batch).lower(self.state, batch)


@dataclass(frozen=True)
class Run:
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
    data: Rows
    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    graph: nnx.GraphDef
    places: TrainState
    init: Callable[[], TrainState]
    step: Step
    course: Course
    token_flops: Mapping[int, float]

    def tokens(self, done: int) -> int:
        """Tokens of the first `done` steps, padding among them."""
        return self.course.tokens(done)

    def flops(self, done: int) -> float:
        """FLOPs of the first `done` steps."""
        return sum(
            (
                stage.batch * stage.length * steps * self.token_flops[stage.length]
                for stage, steps in self.course.before(done)
            ),
            start=0.0,
        )

    def like(self) -> TrainState:
        """Shapes, dtypes and places of a state."""
        return sharding.placed(jax.eval_shape(self.init), self.places)

    def put(self, batch: Batch) -> Batch:
        """A batch that this process has whole on the devices, as the rules say."""
        return jax.device_put(batch, rows_sharding(batch, self.mesh, self.rules))

    def read(self, data: Rows, seed: int, step: int) -> Batch:
        """The batch of that step on the devices, its rows split as the rules say.

        This process reads the rows of its own devices, and no other.
        """
        shape = course_of(data).at(step)[1:]
        place = _place(shape, self.mesh, self.rules)
        parts = [data.batch_at(seed, step, rows) for rows in own_rows(place, shape)]
        own = jax.tree.map(lambda *part: np.concatenate(part), *parts)
        return jax.make_array_from_process_local_data(place, own, shape)


def shaped(data: Rows, step: int = 0) -> Batch:
    """The shapes and dtypes of the batch of that step, of which one row is read."""
    rows = course_of(data).at(step).batch
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
        data.batch_at(0, step, slice(1)),
    )


def rows_sharding(
    batch: Batch, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    """Where the rows of a batch of this shape go."""
    return _place(batch.tokens.shape, mesh, rules)


def _place(
    shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    return NamedSharding(mesh, sharding.spec(("batch", "length"), shape, mesh, rules))


def own_rows(place: NamedSharding, shape: tuple[int, ...]) -> list[slice]:
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
