"""One attempt at a run: from where the last one stopped to the end, or the next."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax

from lmx.config.names import ConfigError
from lmx.config.tree import Config, explained
from lmx.core import process
from lmx.data.batches import Batch
from lmx.data.rows.prefetch import prefetch
from lmx.train.experiment import Experiment
from lmx.train.hooks.log import Log, Waited
from lmx.train.hooks.stop import Stop
from lmx.train.loop import Hook, train
from lmx.train.record.card import card, origin
from lmx.train.record.directory import Directory, Elsewhere, last
from lmx.train.record.line import Line, Silence
from lmx.train.record.plots import draw
from lmx.train.run import Run


def attempt(name: str, config: Config[Experiment], path: Path) -> Directory:
    """Trains the rest of the run in its folder, which afterwards holds all of it.

    Raises ConfigError before anything is written, `StoppedError` once a signal's stop
    is saved.
    """
    experiment, run, periodic = _opened(config)
    _check_data(run)
    directory = _claimed(name, config, run, path)
    saves = experiment.checkpoint
    checkpoints = saves.open(directory.checkpoints, origin(config, run))
    finished = process.from_first(lambda: directory.finished)
    if finished and checkpoints.steps()[-1:] == [run.steps]:
        return directory
    checkpoints.clean()
    newest = checkpoints.newest(run.like(), past=saves.past)
    state = run.init() if newest is None else newest
    begun = time.perf_counter()
    done = int(state.step)
    directory.begin(done)
    batches = Waited(_batches(run, done))
    line = (Line if process.first() else Silence)(name, done, run.steps)
    log = Log(run, directory, batches, experiment.log_every, line)
    stop = Stop(checkpoints, log.flush)
    beside = [
        *(hook(directory) for hook in periodic),
        saves.start(checkpoints, run.steps, log.flush),
    ]
    hooks = [log, *map(log.beside, beside), stop]
    try:
        train(run.step, state, batches, steps=run.steps, hooks=hooks)
        checkpoints.wait()
        directory.update(final=last(path), seconds=time.perf_counter() - begun)
    finally:
        stop.restore()
        line.close()
        batches.close()
        directory.close()
        if process.first():
            draw(path)
    return directory


def _check_data(run: Run) -> None:
    """Refuses to train on data that are not the same in all processes."""
    here = dict(run.data.fingerprint)
    there = process.from_first(lambda: here)
    if here != there:
        raise ConfigError(
            f"the data of process {jax.process_index()} are not those of process 0:"
            f" give all the same files.\n  {here}\n  {there} in process 0"
        )


def _claimed(name: str, config: Config, run: Run, path: Path) -> Directory:
    """The folder of the run, claimed by the first process."""

    def claim() -> None:
        facts = card(name, config, run)
        Directory.claim(path, config, facts, run.data.tokenizer)

    process.from_first(claim)
    return (Directory if process.first() else Elsewhere)(path)


def _opened(
    config: Config[Experiment],
) -> tuple[Experiment, Run, list[Callable[[Directory], Hook]]]:
    """The experiment, its run and its hooks; any refusal with where its cause was set.

    Writes nothing.
    """
    with explained(config):
        experiment = config.build()
        run = experiment.open()
        return experiment, run, [hook.start(run) for hook in experiment.hooks]


def _batches(run: Run, start: int) -> Iterator[Batch]:
    """The batches from step `start` on, put on their devices ahead of their step."""
    return prefetch(partial(run.read, run.data, run.seed), start, run.steps)
