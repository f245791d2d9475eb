"""The root of every configuration: all that tells one run from another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx

from lmx.config.registry import ConfigError, Execution, configurable
from lmx.core import sharding
from lmx.core.sharding import RULES, AnyMesh, Mesh, Rules
from lmx.data.dataset import DatasetConfig
from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.models.remat import check_offload
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.diloco import DiLoCo
from lmx.train.guard.guard import Guard
from lmx.train.guard.nonfinite import AbortOnNonFinite
from lmx.train.hook import Hook
from lmx.train.loss.next_token import NextToken
from lmx.train.optim.schedule import Schedule
from lmx.train.program import RunContext, StepProgram, abstract_batch, batch_sharding
from lmx.train.step import StepConfig, init_state, train_step

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
    data: DatasetConfig
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Schedule
    steps: int
    loss: NextToken = NextToken()
    local_sgd: DiLoCo | None = None
    guard: Guard = AbortOnNonFinite()
    seed: int = 0
    mesh: Execution[Mesh] = Mesh()
    rules: Execution[Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    microbatches: Execution[int] = 1
    hooks: Execution[tuple[Hook, ...]] = ()
    checkpoint: Execution[CheckpointPolicy] = CheckpointPolicy()
    log_every: Execution[int] = 10
    hang_timeout: Execution[float] = 1800.0

    def __post_init__(self):
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Experiment.{name} is {getattr(self, name)}: at least 1."
                )
        if self.hang_timeout <= 0:
            raise ConfigError("Experiment.hang_timeout must be above 0 seconds.")

    def abstract_model(self) -> Decoder:
        """The model without its numbers, once the experiment is known to make sense.

        Asks for no data and no device.
        """
        self.optimizer(self.schedule.build(self.steps))
        return nnx.eval_shape(lambda: self.model(nnx.Rngs(0)))

    def build_program(self, devices: Sequence[Any]) -> StepProgram:
        """The step and the state over these devices, as shapes and places alone.

        Reads no data and makes no numbers; the devices need not be at hand.
        """
        model = self.abstract_model()
        rate = self.schedule.build(self.steps)
        optimizer = self.optimizer(rate)
        init = partial(init_state, self.model, optimizer, self.seed)
        init, take = self.guard.wrap_init(init), self.guard.wrap_step(train_step)
        init = partial(self.local_sgd.init, init) if self.local_sgd else init
        rules = dict(RULES) | dict(self.rules)
        mesh = self.mesh.build(devices, rules)
        check_offload(model.stack.remat, mesh.devices.flat[0].platform)
        graph, _ = nnx.split(model)
        return StepProgram(
            model=model,
            recipe=StepConfig(
                graph, self.loss, optimizer, rate, self.seed, self.microbatches
            ),
            step_fn=partial(self.local_sgd.step, take) if self.local_sgd else take,
            mesh=mesh,
            rules=rules,
            init=init,
            shardings=sharding.shardings(jax.eval_shape(init), mesh, rules),
        )

    def open(self) -> RunContext:
        """Everything a run needs, checked before anything is written or compiled."""
        program = self.build_program(jax.devices())
        _check_no_idle_process(program.mesh)
        data = self.data.open()
        if data.info.vocab > program.model.vocab:
            raise ConfigError(
                f"the data has {data.info.vocab} different tokens and the model knows"
                f" {program.model.vocab}: set Decoder.vocab={data.info.vocab}."
            )
        course = data.info.schedule.truncate(self.steps)
        self.guard.check(course, self.checkpoint)
        batches = [
            abstract_batch(data, stage.first_step) for stage in course.unique_shapes
        ]
        step = program.jit_step(batches[0])  # compiled for each shape
        for stage, batch in zip(course.unique_shapes, batches, strict=True):
            self._check_microbatches(stage.batch_size, program.mesh, program.rules)
            rows = batch_sharding(batch, program.mesh, program.rules)
            # The trace is kept for the first step of the shape.
            jax.eval_shape(
                step, program.abstract_state, sharding.with_shardings(batch, rows)
            )
        return RunContext(
            steps=self.steps,
            seed=self.seed,
            data=data,
            mesh=program.mesh,
            rules=program.rules,
            graph=program.recipe.graph,
            shardings=program.shardings,
            init=jax.jit(program.init, out_shardings=program.shardings),
            step=step,
            batch_schedule=course,
            token_flops={
                stage.sequence_length: flops.train_flops_per_token(
                    program.model, stage.sequence_length
                )
                for stage in course.stages
            },
        )

    def _check_microbatches(self, rows: int, mesh: AnyMesh, rules: Rules) -> None:
        if self.local_sgd:
            self.local_sgd.check(self.steps, rows)
            rows //= self.local_sgd.replicas
            rules = dict(rules) | {
                "batch": tuple(a for a in rules["batch"] if a != "replica")
            }
        if self.microbatches < 1 or rows % self.microbatches:
            raise ConfigError(
                f"{rows} rows cannot be taken in {self.microbatches} equal parts:"
                " Experiment.microbatches must divide the batch."
            )
        sharding.spec(("batch",), (rows // self.microbatches,), mesh, rules)


def _check_no_idle_process(mesh: jax.sharding.Mesh) -> None:
    """Refuses a mesh that leaves a process without work, who could only wait."""
    working = {device.process_index for device in mesh.devices.flat}
    if idle := sorted({device.process_index for device in jax.devices()} - working):
        raise ConfigError(
            f"the mesh takes {mesh.size} of {jax.device_count()} devices, and none of"
            f" process {idle[0]}: make it larger, or start {len(working)} processes."
        )
