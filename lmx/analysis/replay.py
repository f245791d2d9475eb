"""A recorded run, opened read-only, and the replay of its steps."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, PyTree
from tqdm import tqdm

from lmx.config.registry import ConfigError, require
from lmx.config.resolve import apply_overrides
from lmx.config.value import Config, diff, explain_errors
from lmx.core import partitioning, rng
from lmx.core.batch import AnyBatch, count_rows
from lmx.core.console import print_line
from lmx.data.dataset import prefetch
from lmx.run.metadata import describe_environment, diff_metadata, mesh_axes
from lmx.run.run_dir import (
    RunDir,
    encode_non_finite,
    read_config,
    read_metadata,
    read_metrics,
    read_run_ids,
)
from lmx.train.checkpoint.frozen import attach_frozen
from lmx.train.checkpoint.init_from import InitialState, read_init_from
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import DamageError
from lmx.train.diloco import ReplicaState
from lmx.train.experiment import Experiment
from lmx.train.guard.nonfinite import load_skipped, make_reader, to_data_step
from lmx.train.hooks.log import to_python
from lmx.train.loop import train
from lmx.train.program import RunContext
from lmx.train.step import Frozen, Metrics, StepConfig, TrainState

Scalar = int | float | str
Scalars = Mapping[str, Scalar]  # by name; a list has one for each element, as in `x/0`


def load_run_config(folder: Path, overrides: Iterable[str] = ()) -> Config[Experiment]:
    """The config of the run in a folder, with overrides."""
    config = read_config(folder)
    require(
        config.name == "Experiment",
        f"{folder} is @{config.name}, which lmx did not train.",
    )
    return apply_overrides(config, overrides)


@dataclass(frozen=True)
class RecordedRun:
    """A run, opened without its hooks. Nothing is written to its folder."""

    folder: Path
    config: Config[Experiment]  # that of the run, with overrides
    changes: Mapping[str, tuple[Any, Any]]  # by path: the old and the new value
    experiment: Experiment
    run: RunContext

    @classmethod
    def open(cls, folder: Path, overrides: Iterable[str] = ()) -> "RecordedRun":
        """Opens the run in a folder.

        Raises ConfigError if its data have changed, unless the overrides change them.
        """
        original = load_run_config(folder)
        config = apply_overrides(original, overrides)
        with explain_errors(config):
            experiment = config.build()
            run = experiment.open()
        old, new = read_metadata(folder)["data"], dict(run.data.info.fingerprint)
        require(
            new == old or config.identity()["data"] != original.identity()["data"],
            f"the data have changed since {folder} was trained: restore them."
            f"\n  {old} in the run\n  {new} now",
        )
        return cls(folder, config, diff(original, config), experiment, run)

    @property
    def environment_diff(self) -> Mapping[str, tuple[Any, Any]]:
        """The differences between the environment of the run and this process."""
        metadata, axes = read_metadata(self.folder), mesh_axes(self.run.mesh)
        now = {**metadata, "mesh": axes, **describe_environment()}
        return diff_metadata(metadata, now)

    @property
    def logged_metrics(self) -> Mapping[int, Mapping[str, Any]]:
        """All logged metrics by step."""
        rows: dict[int, dict[str, Any]] = {}
        for row in read_metrics(self.folder):
            rows.setdefault(row["step"], {}).update(row)
        return rows

    def load_batch(self, state: TrainState) -> AnyBatch:
        """The batch of the step after this state."""
        run, step = self.run, self.data_step(int(state.step) + 1)
        return run.add_rollouts(state, run.load_batch(run.data, run.seed, step))

    def data_step(self, step: int) -> int:
        """The dataset's step, counted from 0, of a step of the run."""
        return to_data_step(load_skipped(self.folder), step - 1)

    def restore_before(self, step: int) -> TrainState:
        """The newest intact checkpoint from before that step, or the initial state."""
        require(
            1 <= step <= self.run.steps,
            f"step {step} of a run of {self.run.steps} steps: give a step as in"
            " metrics.jsonl, counted from 1.",
        )
        folder = RunDir(self.folder).checkpoint_folder
        checkpoints = CheckpointManager(folder, run_ids=read_run_ids(self.folder))
        recorded = read_init_from(self.folder)
        initial = InitialState(self.experiment.init_from, self.run, recorded)
        abstract = self.run.abstract_state().trained
        for saved in reversed([n for n in checkpoints.list_steps() if n < step]):
            try:
                state = checkpoints.restore(saved, abstract)
                return attach_frozen(state, initial.load_frozen(), checkpoints)
            except DamageError as error:
                print_line(f"using an older checkpoint: this one is damaged: {error}")
            except ConfigError as error:
                raise ConfigError(
                    f"checkpoint {saved} does not fit"
                    f" {', '.join(self.changes) or 'this run'}:"
                    f" {error}\nKeep what determines the arrays of the state, or give a"
                    " step before the first checkpoint."
                ) from error
        return initial.load()

    def run_by_replica(
        self,
        fn: Callable[[StepConfig, PyTree, AnyBatch, Array], Any],
        state: TrainState,
        batch: AnyBatch,
    ) -> list[Any]:
        """`fn` of the step's config, parameters, a batch and the keys of its rows.

        Once, or once for each DiLoCo replica with its own rows.
        """
        run = self.run

        def call(frozen: Frozen, *inputs: Any) -> Any:
            return fn(run.step_config._replace(frozen=frozen), *inputs)

        call = jax.jit(partitioning.with_partitioning(run.mesh, run.rules, call))
        keys_B = rng.fold(run.seed, state.step, "dropout", count_rows(batch))
        if not isinstance(state.opt_state, ReplicaState):
            return [call(state.frozen, state.params, batch, keys_B)]
        params = state.opt_state.params
        replicas = len(jax.tree.leaves(params)[0])
        rows = jax.tree.map(
            lambda x: x.reshape(replicas, -1, *x.shape[1:]), (batch, keys_B)
        )
        return [
            call(state.frozen, *jax.tree.map(lambda x, n=n: x[n], (params, *rows)))
            for n in range(replicas)
        ]

    def train(
        self, state: TrainState, last: int, steps: Collection[int] = ()
    ) -> tuple[TrainState, dict[int, Scalars]]:
        """Trains up to step `last`, and measures the metrics of these steps.

        Consumes the state that it starts from.
        """
        measured, done = {}, int(state.step)
        read = make_reader(self.run, load_skipped(self.folder))
        with (
            tqdm(total=last - done, desc="replay", leave=False, disable=None) as bar,
            contextlib.closing(prefetch(read, done, last)) as batches,
        ):

            def measure(step: int, state: TrainState, metrics: Metrics) -> None:
                del state
                jax.block_until_ready(metrics)  # at most one step is in flight
                bar.update()
                if step in steps:
                    measured[step] = flatten(
                        {n: to_python(x) for n, x in metrics.items()}
                    )

            state = train(self.run.step, state, batches, steps=last, hooks=[measure])
        return state, measured


def flatten(row: Mapping[str, Any]) -> Scalars:
    """A row of metrics as in JSON, with one name for each element of a list."""
    encoded = {name: encode_non_finite(value) for name, value in row.items()}
    return {
        f"{name}/{index}" if isinstance(value, list) else name: item
        for name, value in encoded.items()
        for index, item in enumerate(value if isinstance(value, list) else [value])
    }


@dataclass(frozen=True)
class Replay:
    """The steps after `start_step` up to `step`, as logged and as replayed."""

    start_step: int
    step: int
    logged: Mapping[int, Scalars]
    replayed: Mapping[int, Scalars]  # of the same steps, and of `step` in any case

    @property
    def num_compared(self) -> int:
        """The number of logged values that were compared."""
        return sum(map(len, self.logged.values()))

    @property
    def differences(self) -> list[tuple[int, str, Scalar, Scalar]]:
        """Values that differ in any bit: step, name, logged and replayed value."""
        return [
            (step, name, value, self.replayed[step][name])
            for step, values in self.logged.items()
            for name, value in values.items()
            if value != self.replayed[step][name]
        ]


def replay(recorded: RecordedRun, step: int) -> Replay:
    """Trains again from the newest state before that step to the end of the step.

    Metrics of time and of hooks are not compared. On the machine and mesh of the run,
    without overrides, every value is the same to the bit.
    """
    state = recorded.restore_before(step)
    start = int(state.step)
    logged = {n: x for n, x in recorded.logged_metrics.items() if start < n <= step}
    _, replayed = recorded.train(state, step, {*logged, step})
    rows = {
        n: {name: x for name, x in flatten(row).items() if name in replayed[n]}
        for n, row in sorted(logged.items())
    }
    return Replay(start, step, rows, replayed)
