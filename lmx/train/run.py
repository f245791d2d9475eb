"""An experiment, opened: checked, shaped and placed on its mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding

from lmx.core import sharding, spread
from lmx.data.batches import Batch, Rows
from lmx.models.decoder import Decoder
from lmx.train.loop import Step
from lmx.train.step import Recipe, TrainState, train_step


@dataclass(frozen=True, kw_only=True)
class Program:
    """One training step over a mesh, before there is a number.

    Attributes:
        model: without its numbers.
        init: makes the state of step 0.
        places: where each part of a state lives.
    """

    model: Decoder
    recipe: Recipe
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
        return jax.jit(
            spread.traced_for(self.mesh, self.rules, partial(train_step, self.recipe)),
            in_shardings=(self.places, rows_sharding(batch, self.mesh, self.rules)),
            out_shardings=(self.places, None),
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
        tokens: tokens of one step, padding among them.
        flops: FLOPs of one step, forward and backward.
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
    tokens: int
    flops: float

    def like(self) -> TrainState:
        """Shapes, dtypes and places of a state."""
        return sharding.placed(jax.eval_shape(self.init), self.places)

    def put(self, batch: Batch) -> Batch:
        """The batch on the devices, its rows split as the rules say."""
        return jax.device_put(batch, rows_sharding(batch, self.mesh, self.rules))


def rows_sharding(
    batch: Batch, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    """Where the rows of a batch of this shape go."""
    axes = ("batch", "length")
    return NamedSharding(mesh, sharding.spec(axes, batch.tokens.shape, mesh, rules))
