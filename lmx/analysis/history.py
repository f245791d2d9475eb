"""A run, opened again to look back at: its record, and its state at any step."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.config.value import Config, diff, explain_errors
from lmx.core.console import print_line
from lmx.data.sampling.prefetch import prefetch
from lmx.run.metadata import describe_environment, diff_metadata, mesh_axes
from lmx.run.run_dir import RunDir, read_config, read_metadata, read_metrics
from lmx.train.checkpoint.digest import flatten_by_path
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import DamageError
from lmx.train.experiment import Experiment
from lmx.train.guard.skipped_data import (
    SkippedRanges,
    load_skipped,
    make_reader,
    to_data_step,
)
from lmx.train.loop import StepCallback, train
from lmx.train.program import RunContext
from lmx.train.step import TrainState


def load_run_config(folder: Path, overrides: Iterable[str] = ()) -> Config[Experiment]:
    """What the run in a folder was told, under overrides."""
    words = [*overrides]
    config = read_config(folder)
    if config.name != "Experiment":
        raise ConfigError(f"{folder} is @{config.name}, which was not trained here.")
    if words:
        config = load([folder / "experiment.gin"], words, root=Experiment)
    return config


@dataclass(frozen=True)
class RecordedRun:
    """A run, opened without its hooks. Nothing is written, in its folder or elsewhere.

    Attributes:
        config: what the run was told, under overrides if there are any.
        changes: what these change, by path: what it was, and what it is.
    """

    folder: Path
    config: Config[Experiment]
    changes: Mapping[str, tuple[Any, Any]]
    experiment: Experiment
    run: RunContext

    @classmethod
    def open(cls, folder: Path, overrides: Iterable[str] = ()) -> "RecordedRun":
        """The run in that folder; refused where its data are no longer what they were.

        Overrides may bind anything: what they bind of the data may differ.
        """
        words = [*overrides]
        config = load_run_config(folder, words)
        old = load_run_config(folder)
        with explain_errors(config):
            experiment = config.build()
            past = cls(folder, config, diff(old, config), experiment, experiment.open())
        here, there = dict(past.run.data.info.fingerprint), past.metadata["data"]
        if here != there and config.identity()["data"] == old.identity()["data"]:
            raise ConfigError(
                f"the data are not those that {folder} was trained on: bring them back."
                f"\n  {there} there\n  {here} here"
            )
        return past

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What the run stood on."""
        return read_metadata(self.folder)

    @cached_property
    def environment_diff(self) -> Mapping[str, tuple[Any, Any]]:
        """What is not as it was: on the card of the run, and here."""
        return diff_metadata(
            self.metadata,
            {
                **self.metadata,
                "mesh": mesh_axes(self.run.mesh),
                **describe_environment(),
            },
        )

    @cached_property
    def logged_metrics(self) -> Mapping[int, Mapping[str, Any]]:
        """Everything that was measured, by step."""
        found: dict[int, dict[str, Any]] = {}
        for row in read_metrics(self.folder):
            found.setdefault(row["step"], {}).update(row)
        return found

    def check_step(self, step: int) -> None:
        """Refuses a step that the run does not have."""
        if not 1 <= step <= self.run.steps:
            raise ConfigError(
                f"step {step} of a run of {self.run.steps} steps: they are counted from"
                " 1, and step N is the one that metrics.jsonl calls N."
            )

    def restore_at_or_before(self, done: int) -> TrainState:
        """The newest whole state with at most so many steps done, or that of none."""
        checkpoints = CheckpointManager(RunDir(self.folder).checkpoint_folder, keep=1)
        for step in reversed(
            [step for step in checkpoints.list_steps() if step <= done]
        ):
            if self.changes:
                self._check_shapes(step)
            try:
                return checkpoints.restore(step, self.run.abstract_state())
            except DamageError as error:
                print_line(f"damaged, so that an older state is gone on from: {error}")
        return self.run.init()

    def _check_shapes(self, step: int) -> None:
        """Refuses what is bound where a saved state has other arrays."""
        here = self.experiment
        old = replace(
            load_run_config(self.folder).build(), mesh=here.mesh, rules=here.rules
        )
        kinds = [
            {
                name: (leaf.shape, leaf.dtype)
                for name, leaf in flatten_by_path(tree).items()
            }
            for tree in (
                self.run.abstract_state(),
                old.build_program(jax.devices()).abstract_state,
            )
        ]
        for name, kind in kinds[0].items():
            if kinds[1].get(name) != kind:
                raise ConfigError(
                    f"the state of step {step} has no {name} of {kind[0]}, as with"
                    f" another {', '.join(self.changes)}: bind what leaves its arrays"
                    " as they are, or take a step before the first state."
                )

    def data_step(self, step: int) -> int:
        """Which step of the data that step learned from; both are counted from 1."""
        return to_data_step(self.skipped_ranges, step - 1) + 1

    @cached_property
    def skipped_ranges(self) -> SkippedRanges:
        """The data that the run left out."""
        return load_skipped(self.folder)

    def advance(self, state: TrainState, done: int, *hooks: StepCallback) -> TrainState:
        """The state after so many steps, from one before it, which is consumed.

        Hooks hear of each step, as in training.
        """
        run = self.run
        read = make_reader(run, self.skipped_ranges)
        with contextlib.closing(prefetch(read, int(state.step), done)) as batches:
            return train(run.step, state, batches, steps=done, hooks=hooks)
