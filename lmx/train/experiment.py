"""The root of every configuration: all that tells one run from another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import optax
from flax import nnx

from lmx.config.names import ConfigError, Execution, configurable
from lmx.core import sharding
from lmx.core.sharding import RULES, Mesh
from lmx.data.batches import Source
from lmx.data.rows.numbered import course_of
from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.train.hooks import Periodic, Save
from lmx.train.loss.next_token import NextToken
from lmx.train.run import Run, rows_sharding
from lmx.train.schedule import Schedule
from lmx.train.step import Recipe, init_state, train_step

configurable(Mesh)


@configurable
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run.

    Attributes:
        rules: which mesh axes split a logical axis, where it is not as `RULES` says.
        microbatches: parts that a batch is taken in, one after the other, to save
            memory; the gradient is that of the whole.
        log_every: steps between two lines of metrics.
    """

    model: Callable[..., Decoder]
    data: Source
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Schedule
    steps: int
    loss: NextToken = NextToken()
    seed: int = 0
    mesh: Execution[Mesh] = Mesh()
    rules: Execution[Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    microbatches: Execution[int] = 1
    hooks: Execution[tuple[Periodic, ...]] = ()
    checkpoint: Execution[Save] = Save()
    log_every: Execution[int] = 10

    def __post_init__(self):
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Experiment.{name} is {getattr(self, name)}: at least 1."
                )

    def shaped(self) -> Decoder:
        """The model without its numbers, once the experiment is known to make sense.

        Asks for no data and no device.
        """
        self.optimizer(self.schedule.over(self.steps))
        return nnx.eval_shape(lambda: self.model(nnx.Rngs(0)))

    def open(self) -> Run:
        """Everything a run needs, checked before anything is written or compiled."""
        model = self.shaped()
        rate = self.schedule.over(self.steps)
        optimizer = self.optimizer(rate)
        init = partial(init_state, self.model, optimizer, self.seed)
        state = jax.eval_shape(init)
        rules = dict(RULES) | dict(self.rules)
        mesh = self.mesh.over(jax.devices(), rules)
        places = sharding.shardings(state, mesh, rules)
        data = self.data.open()
        if data.vocab > model.vocab:
            raise ConfigError(
                f"the data has {data.vocab} different tokens and the model knows"
                f" {model.vocab}: set Decoder.vocab={data.vocab}."
            )
        graph, _ = nnx.split(model)
        recipe = Recipe(graph, self.loss, optimizer, rate, self.seed, self.microbatches)
        update = partial(train_step, recipe)
        course = course_of(data).until(self.steps)
        for stage in course.shapes:
            batch = data.batch_at(self.seed, stage.first)
            self._check_parts(stage.batch)
            jax.eval_shape(update, state, batch)
            rows_sharding(batch, mesh, rules)
        step = jax.jit(
            update,  # compiled anew for each shape
            in_shardings=(places, rows_sharding(batch, mesh, rules)),
            out_shardings=(places, None),
            donate_argnums=0,
        )
        born = jax.jit(init, out_shardings=places)
        return Run(
            steps=self.steps,
            seed=self.seed,
            data=data,
            mesh=mesh,
            rules=rules,
            graph=graph,
            places=places,
            init=born,
            step=step,
            course=course,
            token_flops={
                stage.length: flops.per_token(model, stage.length)
                for stage in course.stages
            },
        )

    def _check_parts(self, rows: int) -> None:
        if self.microbatches < 1 or rows % self.microbatches:
            raise ConfigError(
                f"{rows} rows cannot be taken in {self.microbatches} equal parts:"
                " Experiment.microbatches must divide the batch."
            )
