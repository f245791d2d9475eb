"""One attempt at a run: from where the last one stopped to the end, or the next."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from lmx.config.registry import ConfigError
from lmx.config.value import Config, explain_errors
from lmx.core import distributed
from lmx.core.batch import Batch
from lmx.core.console import print_line
from lmx.data.sampling.prefetch import prefetch
from lmx.run.metadata import describe_origin, final_metadata, initial_metadata
from lmx.run.plots import plot_run
from lmx.run.progress import RunProgress
from lmx.run.run_dir import RunDir
from lmx.run.timing import TimeAccounting, now
from lmx.train.checkpoint.manager import CheckpointManager, SaveError
from lmx.train.experiment import Experiment
from lmx.train.guard.guard import MetricWatcher
from lmx.train.guard.rewind import RewindError
from lmx.train.guard.skipped_data import SkippedRanges, load_skipped, make_reader
from lmx.train.guard.watchdog import Watchdog
from lmx.train.hook import ScheduledHook
from lmx.train.hooks.log import MetricLogger
from lmx.train.hooks.preemption import PreemptionWatcher
from lmx.train.hooks.runner import SAVE, HookRunner, unique_names
from lmx.train.hooks.signals import GracefulShutdown
from lmx.train.loop import StepFn, train
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@dataclass(frozen=True)
class RunOptions:
    """How an attempt is made, which changes nothing of what comes of it.

    Attributes:
        since: when its process began, by the clock of the account; None: now.
        grace: seconds after a signal in which the state may be saved; None: any.
        accept: what may differ from what the run began with, by path, `Class.parameter`
            or `data`.
        until: the step after which it stops as at a signal; None: the last of the run.
    """

    started: float | None = None
    grace: float | None = None
    allow_changes: tuple[str, ...] = ()
    stop_after: int | None = None


def train_run(
    name: str,
    config: Config[Experiment],
    path: Path,
    options: RunOptions = RunOptions(),
) -> RunDir:
    """Trains the rest of the run in its folder, which afterwards holds all of it.

    Raises ConfigError before anything is written, `StoppedError` once a signal's stop
    is saved, `FaultError` where it must not go on.
    """
    while True:
        try:
            return _train_once(name, config, path, options)
        except RewindError as rewound:
            options = replace(options, started=now())
            if distributed.is_leader():
                print_line(f"{rewound}")


def _train_once(name: str, config: Config, path: Path, manner: RunOptions) -> RunDir:
    account = TimeAccounting(manner.started)
    experiment, run, periodic = _open_experiment(config)
    _check_data(run)
    with (
        closing(_claim_dir(name, config, run, path, manner.allow_changes)) as directory,
        closing(Watchdog(account.get_state, experiment.hang_timeout, directory.path)),
    ):
        saves, origin = experiment.checkpoint, describe_origin(config, run.mesh)
        checkpoints = saves.open(directory.checkpoint_folder, origin)
        if _is_finished(run, directory, checkpoints):
            return directory
        checkpoints.prepare()
        with account.measure("restore"):
            newest = checkpoints.restore_newest(
                run.abstract_state(), on_damage=saves.handle_damage
            )
            state = run.init() if newest is None else newest
        done = int(state.step)
        directory.truncate_after(done)
        account.start_attempt(directory, done)
        gaps = load_skipped(directory.path)
        checkpoints.extra_metadata["gaps"] = gaps
        leader = distributed.is_leader()
        line = RunProgress(name, done, run.steps, enabled=leader)
        log = MetricLogger(run, directory, account, experiment.log_every, line)
        watch = experiment.guard.start(run, directory, checkpoints)
        settle = partial(_flush_all, log, watch, directory)
        saving = saves.start(checkpoints, run.steps, settle)
        beside = {each: start(directory) for each, start in periodic.items()}
        chores = HookRunner({SAVE: saving} | beside, log.flush, directory, account)
        with (
            _finalize(directory, account),
            closing(line),
            closing(_load_batches(run, done, gaps)) as batches,
            GracefulShutdown(
                checkpoints, settle, account, manner.grace, manner.stop_after
            ) as stop,
            PreemptionWatcher(),
        ):
            chores.run_pending(state)
            account.switch("step")
            step, given = _time_compile(account, run.step), _time_data(account, batches)
            hooks = [log, watch, chores, stop]
            train(step, state, given, steps=run.steps, hooks=hooks)
            account.switch("stop")
            checkpoints.wait()
            settle()
            account.record(run.steps)
            directory.update_metadata(
                **final_metadata(path, run.count_flops(run.steps), run.mesh.size)
            )
    return directory


def _flush_all(log: MetricLogger, watch: MetricWatcher, directory: RunDir) -> None:
    """All that was measured is on disk, in every process; SaveError if not.

    So that no state is there whose metrics are not, or whose numbers are none.
    """
    log.flush()
    if fault := distributed.broadcast_from_leader(directory.flush):
        raise SaveError(fault)
    watch.flush()


@contextmanager
def _finalize(directory: RunDir, account: TimeAccounting) -> Iterator[None]:
    """Draws what was measured and closes the account, however training ends."""
    try:
        yield
    finally:
        account.switch("stop")
        if distributed.is_leader():
            plot_run(directory.path)
        account.finish()


def _is_finished(
    run: RunContext, directory: RunDir, checkpoints: CheckpointManager
) -> bool:
    """Whether the last step was done, saved, and is on the card."""
    finished = distributed.broadcast_from_leader(lambda: directory.finished)
    return finished and checkpoints.list_steps()[-1:] == [run.steps]


def _check_data(run: RunContext) -> None:
    """Refuses to train on data that are not the same in all processes."""
    here = dict(run.data.info.fingerprint)
    there = distributed.broadcast_from_leader(lambda: here)
    if here != there:
        raise ConfigError(
            f"the data of process {jax.process_index()} are not those of process 0:"
            f" give all the same files.\n  {here}\n  {there} in process 0"
        )


def _claim_dir(
    name: str, config: Config, run: RunContext, path: Path, accept: tuple[str, ...]
) -> RunDir:
    """The folder of the run, claimed by the first process."""
    held: list[RunDir] = [RunDir(path, writable=False)]

    def claim() -> None:
        facts = initial_metadata(name, config, run.describe())
        codec = run.data.info.tokenizer
        held.append(RunDir.claim(path, config, facts, codec, accept))

    distributed.broadcast_from_leader(claim)
    return held[-1]


def _open_experiment(
    config: Config[Experiment],
) -> tuple[Experiment, RunContext, dict[str, Callable[[RunDir], ScheduledHook]]]:
    """The experiment, its run and its hooks; any refusal with where its cause was set.

    Writes nothing.
    """
    with explain_errors(config):
        experiment = config.build()
        run = experiment.open()
        hooks = unique_names(experiment.hooks)
        return experiment, run, {name: hook.start(run) for name, hook in hooks.items()}


def _load_batches(
    run: RunContext, start: int, gaps: SkippedRanges = ()
) -> Generator[Batch, None, None]:
    """The batches from step `start` on, put on their devices ahead of their step."""
    return prefetch(make_reader(run, gaps), start, run.steps)


def _time_data(account: TimeAccounting, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; the seconds until each is there are those of `data`."""
    while True:
        with account.measure("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _time_compile(account: TimeAccounting, step: StepFn) -> StepFn:
    """The step; the first call for each shape of a batch is `compile`."""
    seen: set[tuple[int, ...]] = set()

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if batch.tokens.shape in seen:
            return step(state, batch)
        seen.add(batch.tokens.shape)
        with account.measure("compile"):
            return step(state, batch)

    return call
