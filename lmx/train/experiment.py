"""The root of every configuration: all that tells one run from another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx

from lmx.config.names import ConfigError, Execution, configurable
from lmx.core import sharding
from lmx.core.sharding import RULES, AnyMesh, Mesh, Rules
from lmx.data.batches import Source
from lmx.data.rows.numbered import course_of
from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.models.remat import offloadable
from lmx.train.checkpoint.save import Save
from lmx.train.guard.guard import Guard
from lmx.train.guard.numbers import Abort
from lmx.train.hooks.periodic import Periodic
from lmx.train.loss.next_token import NextToken
from lmx.train.optim.outer import DiLoCo
from lmx.train.optim.schedule import Schedule
from lmx.train.run import Program, Run, rows_sharding, shaped
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
        outer: how replicas that learn apart agree; None: all learn together.
        guard: what becomes of a step whose numbers are wrong.
        log_every: steps between two lines of metrics.
        patience: seconds for one step, save, evaluation or compilation; a process that
            takes more hangs, and ends.
    """

    model: Callable[..., Decoder]
    data: Source
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Schedule
    steps: int
    loss: NextToken = NextToken()
    outer: DiLoCo | None = None
    guard: Guard = Abort()
    seed: int = 0
    mesh: Execution[Mesh] = Mesh()
    rules: Execution[Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    microbatches: Execution[int] = 1
    hooks: Execution[tuple[Periodic, ...]] = ()
    checkpoint: Execution[Save] = Save()
    log_every: Execution[int] = 10
    patience: Execution[float] = 1800.0

    def __post_init__(self):
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Experiment.{name} is {getattr(self, name)}: at least 1."
                )
        if self.patience <= 0:
            raise ConfigError("Experiment.patience must be above 0 seconds.")

    def shaped(self) -> Decoder:
        """The model without its numbers, once the experiment is known to make sense.

        Asks for no data and no device.
        """
        self.optimizer(self.schedule.over(self.steps))
        return nnx.eval_shape(lambda: self.model(nnx.Rngs(0)))

    def program(self, devices: Sequence[Any]) -> Program:
        """The step and the state over these devices, as shapes and places alone.

        Reads no data and makes no numbers; the devices need not be at hand.
        """
        model = self.shaped()
        rate = self.schedule.over(self.steps)
        optimizer = self.optimizer(rate)
        init = partial(init_state, self.model, optimizer, self.seed)
        init, take = self.guard.init(init), self.guard.step(train_step)
        init = partial(self.outer.init, init) if self.outer else init
        rules = dict(RULES) | dict(self.rules)
        mesh = self.mesh.over(devices, rules)
        offloadable(model.stack.remat, mesh.devices.flat[0].platform)
        graph, _ = nnx.split(model)
        return Program(
            model=model,
            recipe=Recipe(
                graph, self.loss, optimizer, rate, self.seed, self.microbatches
            ),
            take=partial(self.outer.step, take) if self.outer else take,
            mesh=mesh,
            rules=rules,
            init=init,
            places=sharding.shardings(jax.eval_shape(init), mesh, rules),
        )

    def open(self) -> Run:
        """Everything a run needs, checked before anything is written or compiled."""
        program = self.program(jax.devices())
        _check_all_work(program.mesh)
        data = self.data.open()
        if data.vocab > program.model.vocab:
            raise ConfigError(
                f"the data has {data.vocab} different tokens and the model knows"
                f" {program.model.vocab}: set Decoder.vocab={data.vocab}."
            )
        course = course_of(data).until(self.steps)
        self.guard.check(course, self.checkpoint)
        batches = [shaped(data, stage.first) for stage in course.shapes]
        step = program.step(batches[0])  # compiled for each shape
        for stage, batch in zip(course.shapes, batches, strict=True):
            self._check_parts(stage.batch, program.mesh, program.rules)
            rows = rows_sharding(batch, program.mesh, program.rules)
            # The trace is kept for the first step of the shape.
            jax.eval_shape(step, program.state, sharding.placed(batch, rows))
        return Run(
            steps=self.steps,
            seed=self.seed,
            data=data,
            mesh=program.mesh,
            rules=program.rules,
            graph=program.recipe.graph,
            places=program.places,
            init=jax.jit(program.init, out_shardings=program.places),
            step=step,
            course=course,
            token_flops={
                stage.length: flops.per_token(program.model, stage.length)
                for stage in course.stages
            },
        )

    def _check_parts(self, rows: int, mesh: AnyMesh, rules: Rules) -> None:
        if self.outer:
            self.outer.check(self.steps, rows)
            rows //= self.outer.replicas
            rules = dict(rules) | {
                "batch": tuple(a for a in rules["batch"] if a != "replica")
            }
        if self.microbatches < 1 or rows % self.microbatches:
            raise ConfigError(
                f"{rows} rows cannot be taken in {self.microbatches} equal parts:"
                " Experiment.microbatches must divide the batch."
            )
        sharding.spec(("batch",), (rows // self.microbatches,), mesh, rules)


def _check_all_work(mesh: jax.sharding.Mesh) -> None:
    """Refuses a mesh that leaves a process without work, who could only wait."""
    working = {device.process_index for device in mesh.devices.flat}
    if idle := sorted({device.process_index for device in jax.devices()} - working):
        raise ConfigError(
            f"the mesh takes {mesh.size} of {jax.device_count()} devices, and none of"
            f" process {idle[0]}: make it larger, or start {len(working)} processes."
        )
