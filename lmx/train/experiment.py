"""The root of a training config: model, data, optimizer, schedule and execution."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import optax
from flax import nnx

from lmx.config.registry import Execution, Positive, configurable, require, suggest
from lmx.config.resolve import load
from lmx.config.value import Config
from lmx.core import sharding
from lmx.core.rng import SEEDS
from lmx.core.sharding import RULES, Mesh
from lmx.data.dataset import DatasetConfig, RolloutDataset
from lmx.models.decoder import Decoder
from lmx.models.params import flatten_params
from lmx.models.remat import check_offload
from lmx.run.wandb import WandB
from lmx.train.checkpoint.init_from import InitFrom
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.diloco import DiLoCo
from lmx.train.guard.nonfinite import AbortOnNonFinite, Guard
from lmx.train.hook import HookConfig
from lmx.train.loss import Loss, NextToken
from lmx.train.optim.parametrization import MuP
from lmx.train.optim.schedule import Schedule
from lmx.train.program import (
    RunContext,
    StepProgram,
    abstract_batch,
    batch_shardings,
    check_batch,
    check_vocab,
    make_abstract_batch,
)
from lmx.train.step import StepConfig, TrainState, init_state, train_step

configurable(Mesh)


@configurable
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run.

    Attributes:
        rules: mesh axes of each logical axis, where they differ from `RULES`.
        microbatches: equal parts of a batch that are processed one after the other, to
            save memory; the gradient is that of the whole batch.
        parametrization: how initial weights and rates follow from those of a smaller
            model; None: they do not.
        trainable: patterns of names of parameters, as in `*.norm.*`. Others are frozen:
            they have no gradient and no optimizer state, and no checkpoint holds them.
        init_from: the weights to begin with; None: random ones.
        local_sgd: how replicas synchronize; None: in every step.
        guard: what to do at a step with non-finite numbers or a loss spike.
        wandb: where metrics are sent beside the files of the run.
        log_every: steps between two lines of metrics.
        hang_timeout: seconds for one step, save, evaluation or compilation; a process
            that takes longer exits.
    """

    model: Callable[..., Decoder]
    data: DatasetConfig
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Schedule
    steps: Positive[int]
    loss: Loss = NextToken()
    parametrization: MuP | None = None
    trainable: tuple[str, ...] = ("*",)
    init_from: InitFrom | None = None
    local_sgd: DiLoCo | None = None
    guard: Guard = AbortOnNonFinite()
    seed: Annotated[int, SEEDS] = 0
    mesh: Execution[Mesh] = Mesh()
    rules: Execution[Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    microbatches: Execution[Positive[int]] = 1
    hooks: Execution[tuple[HookConfig, ...]] = ()
    checkpoint: Execution[CheckpointPolicy] = CheckpointPolicy()
    wandb: Execution[WandB | None] = None
    log_every: Execution[Positive[int]] = 10
    hang_timeout: Execution[Positive[float]] = 1800.0

    def abstract_model(self) -> Decoder:
        """The model as shapes and dtypes. Uses no data and no device."""
        self.optimizer(self.schedule.build(self.steps))
        return nnx.eval_shape(lambda: self.model(nnx.Rngs(0)))

    def init_model(self, rngs: nnx.Rngs) -> Decoder:
        """The model with initial weights."""
        if self.parametrization is None:
            return self.model(rngs)
        return self.parametrization.init(self.model, rngs)

    def build_optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the parameters of the model."""
        schedule = self.schedule.build(self.steps)
        if self.parametrization is None:
            return self.optimizer(schedule)
        tokens = self.data.schedule.truncate(self.steps).count_tokens(self.steps)
        return self.parametrization.build_optimizer(
            self.optimizer, schedule, self.abstract_model(), tokens, self.steps
        )

    def make_init(self) -> Callable[..., TrainState]:
        """Makes the state of step 0; given parameters by path, with those."""
        init = partial(
            init_state,
            self.init_model,
            self.build_optimizer(),
            self.seed,
            trainable=self.trainable,
            loss=self.loss,
        )
        init = self.guard.wrap_init(init)
        return partial(self.local_sgd.init, init) if self.local_sgd else init

    def build_program(self, devices: Sequence[Any]) -> StepProgram:
        """The step on these devices, which need not be local. Reads no data."""
        model = self.abstract_model()
        schedule, optimizer = self.schedule.build(self.steps), self.build_optimizer()
        graph, params = nnx.split(model)
        self._check_trainable(flatten_params(params))
        init, step = self.make_init(), self.guard.wrap_step(train_step)
        if self.local_sgd:
            step = partial(self.local_sgd.step, step)
        rules = dict(RULES) | dict(self.rules)
        mesh = self.mesh.build(devices, rules)
        check_offload(model.stack.remat, mesh.devices.flat[0].platform)
        owned = nnx.eval_shape(self.loss.frozen, model)
        shardings = sharding.shardings(jax.eval_shape(init), mesh, rules)
        return StepProgram(
            model=model,
            step_config=StepConfig(
                graph,
                self.loss,
                optimizer,
                schedule,
                self.seed,
                self.microbatches,
                loss_graph=nnx.split(owned)[0] if owned else None,
            ),
            step_fn=step,
            mesh=mesh,
            rules=rules,
            init=jax.jit(init, out_shardings=shardings),
            shardings=shardings,
            batch_spec=self.data.spec,
            steps=self.steps,
        )

    def open(self) -> RunContext:
        """All that a run needs, checked before anything is written or compiled."""
        program = self.build_program(jax.devices())
        _check_no_idle_process(program.mesh)
        data = self.data.open()
        check_vocab(data.info, program.model)
        schedule = data.info.schedule.truncate(self.steps)
        self.guard.check(schedule, self.checkpoint)
        last = {
            stage.sequence_length: stage.first_step + count - 1
            for stage, count in schedule.split_steps(self.steps)
        }
        for step in last.values():  # data of one pass refuse it if they end before
            data.read(schedule.request(self.seed, step, slice(None)))
        shapes = schedule.unique_shapes
        batches = [make_abstract_batch(self.data.spec, *stage[1:]) for stage in shapes]
        step = program.jit_step(batches[0])  # compiled once for each shape
        makes_rollouts = isinstance(data, RolloutDataset)
        for stage, batch in zip(shapes, batches, strict=True):
            if not makes_rollouts:
                check_batch(abstract_batch(data, stage.first_step), batch)
            self._check_microbatches(stage.batch_size, program)
            rows = batch_shardings(batch, program.mesh, program.rules)
            batch = sharding.with_shardings(batch, rows)
            # The first step of this shape reuses the trace.
            jax.eval_shape(step, program.abstract_state(), batch)
        require(
            not (makes_rollouts and self.local_sgd),
            f"the replicas of DiLoCo have parameters of their own, and"
            f" {type(data).__name__} makes rollouts with one model: unset"
            " Experiment.local_sgd.",
        )
        parts = {"data": data, "step": step, "batch_schedule": schedule}
        run = RunContext(**vars(program), seed=self.seed, **parts)
        return run.with_rollouts() if makes_rollouts else run

    def _check_trainable(self, params: Mapping[str, Any]) -> None:
        for pattern in self.trainable:
            require(
                any(fnmatchcase(name, pattern) for name in params),
                f"Experiment.trainable has {pattern!r}, which no parameter matches"
                f"{suggest(pattern, params)}",
            )
        require(self.trainable, "Experiment.trainable is empty: name a parameter.")

    def _check_microbatches(self, rows: int, program: StepProgram) -> None:
        rules = dict(program.rules)
        if self.local_sgd:
            self.local_sgd.check(self.steps, rows)
            rows //= self.local_sgd.replicas
            rules["batch"] = tuple(a for a in rules["batch"] if a != "replica")
        require(
            rows % self.microbatches == 0,
            f"{rows} rows cannot be split into {self.microbatches} equal parts:"
            " Experiment.microbatches must divide the batch size.",
        )
        sharding.spec(("batch",), (rows // self.microbatches,), program.mesh, rules)


def load_experiment(
    path: str | Path, overrides: Iterable[str] = ()
) -> Config[Experiment]:
    """The experiment of a `.gin` config with overrides, as in `"Attention.heads=8"`."""
    return load([path], overrides, root=Experiment)


def _check_no_idle_process(mesh: jax.sharding.Mesh) -> None:
    """Refuses a mesh that has no device of some process, which could only wait."""
    working = {device.process_index for device in mesh.devices.flat}
    idle = sorted({device.process_index for device in jax.devices()} - working)
    require(
        not idle,
        f"the mesh takes {mesh.size} of {jax.device_count()} devices, and none of"
        f" process {', '.join(map(str, idle))}: make it larger, or start"
        f" {len(working)} processes.",
    )
