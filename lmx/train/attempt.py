"""One attempt at a run: from where the last one stopped to the end, or the next."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from lmx.config.names import ConfigError
from lmx.config.tree import Config, explained
from lmx.core import process
from lmx.data.batches import Batch
from lmx.data.progress import say
from lmx.data.rows.prefetch import prefetch
from lmx.train.checkpoint.checkpoints import Checkpoints, SaveError
from lmx.train.experiment import Experiment
from lmx.train.guard.gaps import Gaps, gaps_of, reader
from lmx.train.guard.guard import Watch
from lmx.train.guard.rewind import RewoundError
from lmx.train.guard.watchdog import Watchdog
from lmx.train.hooks.chores import SAVE, Chores, names
from lmx.train.hooks.eviction import Eviction
from lmx.train.hooks.log import Log
from lmx.train.hooks.periodic import Due
from lmx.train.hooks.stop import Stop
from lmx.train.loop import Step, train
from lmx.train.record.account import Account, now
from lmx.train.record.card import card, origin, outcome
from lmx.train.record.directory import Directory, Elsewhere
from lmx.train.record.line import Line, Silence
from lmx.train.record.plots import draw
from lmx.train.run import Run
from lmx.train.step import Metrics, TrainState


@dataclass(frozen=True)
class Manner:
    """How an attempt is made, which changes nothing of what comes of it.

    Attributes:
        since: when its process began, by the clock of the account; None: now.
        grace: seconds after a signal in which the state may be saved; None: any.
        accept: what may differ from what the run began with, by path, `Class.parameter`
            or `data`.
        until: the step after which it stops as at a signal; None: the last of the run.
    """

    since: float | None = None
    grace: float | None = None
    accept: tuple[str, ...] = ()
    until: int | None = None


def attempt(
    name: str, config: Config[Experiment], path: Path, manner: Manner = Manner()
) -> Directory:
    """Trains the rest of the run in its folder, which afterwards holds all of it.

    Raises ConfigError before anything is written, `StoppedError` once a signal's stop
    is saved, `FaultError` where it must not go on.
    """
    while True:
        try:
            return _attempt(name, config, path, manner)
        except RewoundError as rewound:
            manner = replace(manner, since=now())
            if process.first():
                say(f"{rewound}")


def _attempt(name: str, config: Config, path: Path, manner: Manner) -> Directory:
    account = Account(manner.since)
    experiment, run, periodic = _opened(config)
    _check_data(run)
    with (
        closing(_claimed(name, config, run, path, manner.accept)) as directory,
        closing(Watchdog(account.pulse, experiment.patience, directory.path)),
    ):
        saves = experiment.checkpoint
        checkpoints = saves.open(directory.checkpoints, origin(config, run))
        if _over(run, directory, checkpoints):
            return directory
        checkpoints.clean()
        with account.within("restore"):
            newest = checkpoints.newest(run.like(), past=saves.past)
            state = run.init() if newest is None else newest
        done = int(state.step)
        directory.begin(done)
        account.begin(directory, done)
        gaps = gaps_of(directory.path)
        checkpoints.extra["gaps"] = gaps
        line = (Line if process.first() else Silence)(name, done, run.steps)
        log = Log(run, directory, account, experiment.log_every, line)
        watch = experiment.guard.start(run, directory, checkpoints)
        settle = partial(_settled, log, watch, directory)
        saving = saves.start(checkpoints, run.steps, settle)
        beside = {each: start(directory) for each, start in periodic.items()}
        chores = Chores({SAVE: saving} | beside, log.flush, directory, account)
        with (
            _ending(directory, account),
            closing(line),
            closing(_batches(run, done, gaps)) as batches,
            Stop(checkpoints, settle, account, manner.grace, manner.until) as stop,
            Eviction(),
        ):
            chores.owed(state)
            account.enter("step")
            step, given = _apart(account, run.step), _awaited(account, batches)
            hooks = [log, watch, chores, stop]
            train(step, state, given, steps=run.steps, hooks=hooks)
            account.enter("stop")
            checkpoints.wait()
            settle()
            account.note(run.steps)
            directory.update(**outcome(run, path))
    return directory


def _settled(log: Log, watch: Watch, directory: Directory) -> None:
    """All that was measured is on disk, in every process; SaveError if not.

    So that no state is there whose metrics are not, or whose numbers are none.
    """
    log.flush()
    if fault := process.from_first(directory.fault):
        raise SaveError(fault)
    watch.flush()


@contextmanager
def _ending(directory: Directory, account: Account) -> Iterator[None]:
    """Draws what was measured and closes the account, however training ends."""
    try:
        yield
    finally:
        account.enter("stop")
        if process.first():
            draw(directory.path)
        account.end()


def _over(run: Run, directory: Directory, checkpoints: Checkpoints) -> bool:
    """Whether the last step was done, saved, and is on the card."""
    finished = process.from_first(lambda: directory.finished)
    return finished and checkpoints.steps()[-1:] == [run.steps]


def _check_data(run: Run) -> None:
    """Refuses to train on data that are not the same in all processes."""
    here = dict(run.data.fingerprint)
    there = process.from_first(lambda: here)
    if here != there:
        raise ConfigError(
            f"the data of process {jax.process_index()} are not those of process 0:"
            f" give all the same files.\n  {here}\n  {there} in process 0"
        )


def _claimed(
    name: str, config: Config, run: Run, path: Path, accept: tuple[str, ...]
) -> Directory:
    """The folder of the run, claimed by the first process."""
    held: list[Directory] = [Elsewhere(path)]

    def claim() -> None:
        facts = card(name, config, run)
        codec = run.data.tokenizer
        held.append(Directory.claim(path, config, facts, codec, accept))

    process.from_first(claim)
    return held[-1]


def _opened(
    config: Config[Experiment],
) -> tuple[Experiment, Run, dict[str, Callable[[Directory], Due]]]:
    """The experiment, its run and its hooks; any refusal with where its cause was set.

    Writes nothing.
    """
    with explained(config):
        experiment = config.build()
        run = experiment.open()
        hooks = names(experiment.hooks)
        return experiment, run, {name: hook.start(run) for name, hook in hooks.items()}


def _batches(run: Run, start: int, gaps: Gaps = ()) -> Generator[Batch, None, None]:
    """The batches from step `start` on, put on their devices ahead of their step."""
    return prefetch(reader(run, gaps), start, run.steps)


def _awaited(account: Account, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; the seconds until each is there are those of `data`."""
    while True:
        with account.within("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _apart(account: Account, step: Step) -> Step:
    """The step; the first call for each shape of a batch is `compile`."""
    seen: set[tuple[int, ...]] = set()

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if batch.tokens.shape in seen:
            return step(state, batch)
        seen.add(batch.tokens.shape)
        with account.within("compile"):
            return step(state, batch)

    return call
