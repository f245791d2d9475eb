"""An experiment, opened: checked, shaped and placed on its mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from flax import nnx
from jax.sharding import NamedSharding

from lmx.core import sharding
from lmx.data.batches import Batch, Rows
from lmx.data.rows.schedule import Course
from lmx.train.loop import Step
from lmx.train.step import TrainState


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
        """The batch on the devices, its rows split as the rules say."""
        return jax.device_put(batch, rows_sharding(batch, self.mesh, self.rules))


def rows_sharding(
    batch: Batch, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> NamedSharding:
    """Where the rows of a batch of this shape go."""
    axes = ("batch", "length")
    return NamedSharding(mesh, sharding.spec(axes, batch.tokens.shape, mesh, rules))
