"""A run, opened again to look back at: its record, and its state at any step."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from lmx.config.names import ConfigError
from lmx.config.resolve import from_json, load
from lmx.config.tree import Config, diff, explained
from lmx.data.progress import say
from lmx.data.rows.prefetch import prefetch
from lmx.train.checkpoint.checkpoints import Checkpoints
from lmx.train.checkpoint.digest import by_path
from lmx.train.checkpoint.reader import DamageError
from lmx.train.experiment import Experiment
from lmx.train.guard.gaps import Gaps, data_step, gaps_of, reader
from lmx.train.loop import Hook, train
from lmx.train.record.card import axes, ground, unlike
from lmx.train.record.directory import Directory, rows
from lmx.train.run import Run
from lmx.train.step import TrainState


def recorded(folder: Path, overrides: Iterable[str] = ()) -> Config[Experiment]:
    """What the run in a folder was told, under overrides."""
    words = [*overrides]
    record = folder / "experiment.json"
    if not record.is_file():
        raise ConfigError(f"{folder} is no run: it has no experiment.json.")
    config = from_json(record.read_text())
    if config.name != "Experiment":
        raise ConfigError(f"{folder} is @{config.name}, which was not trained here.")
    if words:
        config = load([folder / "experiment.gin"], words, root=Experiment)
    return config


@dataclass(frozen=True)
class Past:
    """A run, opened without its hooks. Nothing is written, in its folder or elsewhere.

    Attributes:
        config: what the run was told, under overrides if there are any.
        changes: what these change, by path: what it was, and what it is.
    """

    folder: Path
    config: Config[Experiment]
    changes: Mapping[str, tuple[Any, Any]]
    experiment: Experiment
    run: Run

    @classmethod
    def open(cls, folder: Path, overrides: Iterable[str] = ()) -> "Past":
        """The run in that folder; refused where its data are no longer what they were.

        Overrides may bind anything: what they bind of the data may differ.
        """
        words = [*overrides]
        config = recorded(folder, words)
        old = recorded(folder)
        with explained(config):
            experiment = config.build()
            past = cls(folder, config, diff(old, config), experiment, experiment.open())
        here, there = dict(past.run.data.fingerprint), past.card["data"]
        if here != there and config.identity()["data"] == old.identity()["data"]:
            raise ConfigError(
                f"the data are not those that {folder} was trained on: bring them back."
                f"\n  {there} there\n  {here} here"
            )
        return past

    @cached_property
    def card(self) -> Mapping[str, Any]:
        """What the run stood on."""
        return json.loads((self.folder / "card.json").read_text())

    @cached_property
    def elsewhere(self) -> Mapping[str, tuple[Any, Any]]:
        """What is not as it was: on the card of the run, and here."""
        return unlike(self.card, {**self.card, "mesh": axes(self.run), **ground()})

    @cached_property
    def logged(self) -> Mapping[int, Mapping[str, Any]]:
        """Everything that was measured, by step."""
        found: dict[int, dict[str, Any]] = {}
        for row in rows(self.folder):
            found.setdefault(row["step"], {}).update(row)
        return found

    def check(self, step: int) -> None:
        """Refuses a step that the run does not have."""
        if not 1 <= step <= self.run.steps:
            raise ConfigError(
                f"step {step} of a run of {self.run.steps} steps: they are counted from"
                " 1, and step N is the one that metrics.jsonl calls N."
            )

    def nearest(self, done: int) -> TrainState:
        """The newest whole state with at most so many steps done, or that of none."""
        checkpoints = Checkpoints(Directory(self.folder).checkpoints, keep=1)
        for step in reversed([step for step in checkpoints.steps() if step <= done]):
            if self.changes:
                self._check_shapes(step)
            try:
                return checkpoints.restore(step, self.run.like())
            except DamageError as error:
                say(f"damaged, so that an older state is gone on from: {error}")
        return self.run.init()

    def _check_shapes(self, step: int) -> None:
        """Refuses what is bound where a saved state has other arrays."""
        here = self.experiment
        old = replace(recorded(self.folder).build(), mesh=here.mesh, rules=here.rules)
        kinds = [
            {name: (leaf.shape, leaf.dtype) for name, leaf in by_path(tree).items()}
            for tree in (self.run.like(), old.program(jax.devices()).state)
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
        return data_step(self.gaps, step - 1) + 1

    @cached_property
    def gaps(self) -> Gaps:
        """The data that the run left out."""
        return gaps_of(self.folder)

    def go(self, state: TrainState, done: int, *hooks: Hook) -> TrainState:
        """The state after so many steps, from one before it, which is consumed.

        Hooks hear of each step, as in training.
        """
        run = self.run
        read = reader(run, self.gaps)
        with contextlib.closing(prefetch(read, int(state.step), done)) as batches:
            return train(run.step, state, batches, steps=done, hooks=hooks)
