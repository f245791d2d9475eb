"""A finished or interrupted run, opened read-only: its record and its past states."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.config.value import Config, diff, explain_errors
from lmx.core.console import print_line
from lmx.data.dataset import prefetch
from lmx.run.metadata import describe_environment, diff_metadata, mesh_axes
from lmx.run.run_dir import RunDir, read_config, read_metadata, read_metrics
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import DamageError
from lmx.train.experiment import Experiment
from lmx.train.guard.guard import (
    SkippedRanges,
    load_skipped,
    make_reader,
    to_data_step,
)
from lmx.train.loop import StepCallback, train
from lmx.train.program import RunContext
from lmx.train.step import TrainState


def load_run_config(folder: Path, overrides: Iterable[str] = ()) -> Config[Experiment]:
    """The config of the run in a folder, with overrides."""
    config, overrides = read_config(folder), [*overrides]
    if config.name != "Experiment":
        raise ConfigError(f"{folder} is @{config.name}, which lmx did not train.")
    if overrides:
        return load([folder / "experiment.gin"], overrides, root=Experiment)
    return config


@dataclass(frozen=True)
class RecordedRun:
    """A run, opened without its hooks. Nothing is written to its folder.

    Attributes:
        config: that of the run, with overrides.
        changes: what the overrides change, by path: the old and the new value.
    """

    folder: Path
    config: Config[Experiment]
    changes: Mapping[str, tuple[Any, Any]]
    experiment: Experiment
    run: RunContext

    @classmethod
    def open(cls, folder: Path, overrides: Iterable[str] = ()) -> "RecordedRun":
        """Opens the run in a folder.

        Raises ConfigError if its data have changed, unless the overrides change them.
        """
        original = load_run_config(folder)
        config = load_run_config(folder, overrides)
        with explain_errors(config):
            experiment = config.build()
            run = experiment.open()
        old, new = read_metadata(folder)["data"], dict(run.data.info.fingerprint)
        same_data = config.identity()["data"] == original.identity()["data"]
        if new != old and same_data:
            raise ConfigError(
                f"the data have changed since {folder} was trained: restore them."
                f"\n  {old} in the run\n  {new} now"
            )
        return cls(folder, config, diff(original, config), experiment, run)

    @cached_property
    def environment_diff(self) -> Mapping[str, tuple[Any, Any]]:
        """The differences between the environment of the run and this process."""
        now = {"mesh": mesh_axes(self.run.mesh), **describe_environment()}
        metadata = read_metadata(self.folder)
        return diff_metadata(metadata, metadata | now)

    @cached_property
    def logged_metrics(self) -> Mapping[int, Mapping[str, Any]]:
        """All logged metrics by step."""
        rows: dict[int, dict[str, Any]] = {}
        for row in read_metrics(self.folder):
            rows.setdefault(row["step"], {}).update(row)
        return rows

    @cached_property
    def skipped_ranges(self) -> SkippedRanges:
        """The data that the run skipped."""
        return load_skipped(self.folder)

    def data_step(self, step: int) -> int:
        """The dataset's step, counted from 0, of a step of the run."""
        return to_data_step(self.skipped_ranges, step - 1)

    def restore_before(self, step: int) -> TrainState:
        """The newest undamaged state from before that step, or the initial one."""
        if not 1 <= step <= self.run.steps:
            raise ConfigError(
                f"step {step} of a run of {self.run.steps} steps: give a step as in"
                " metrics.jsonl, counted from 1."
            )
        checkpoints = CheckpointManager(RunDir(self.folder).checkpoint_folder, keep=1)
        for saved in reversed(checkpoints.list_steps()):
            try:
                if saved < step:
                    return checkpoints.restore(saved, self.run.abstract_state())
            except DamageError as error:
                print_line(f"using an older state, since this one is damaged: {error}")
            except ConfigError as error:
                raise ConfigError(
                    f"the state of step {saved} does not fit {', '.join(self.changes)}:"
                    f" {error}\nKeep what determines the arrays of the state, or give a"
                    " step before the first saved state."
                ) from error
        return self.run.init()

    def advance(self, state: TrainState, last: int, *hooks: StepCallback) -> TrainState:
        """Trains up to and including step `last`; consumes the state it starts from."""
        read = make_reader(self.run, self.skipped_ranges)
        with contextlib.closing(prefetch(read, int(state.step), last)) as batches:
            return train(self.run.step, state, batches, steps=last, hooks=hooks)
