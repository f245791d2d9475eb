"""Trains a run: opens it or resumes it, calls its steps and hooks, and finishes it."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from lmx.config.registry import require
from lmx.config.value import Config, explain_errors
from lmx.core import distributed
from lmx.core.batch import AnyBatch
from lmx.core.console import print_line, warn_on_error
from lmx.data.dataset import prefetch
from lmx.run.goodput import TimeAccounting, now
from lmx.run.metadata import ORIGIN, final_metadata, initial_metadata
from lmx.run.plots import plot_run
from lmx.run.progress import RunProgress
from lmx.run.run_dir import RunDir, read_run_ids
from lmx.train.checkpoint.frozen import KEY, attach_frozen, digest_frozen
from lmx.train.checkpoint.init_from import InitialState, read_init_from
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.policy import require_written
from lmx.train.experiment import Experiment
from lmx.train.guard.nonfinite import GuardContext, load_skipped, make_reader
from lmx.train.guard.spikes import RewindError
from lmx.train.guard.watchdog import Watchdog
from lmx.train.hook import SAVE, HookRunner, unique_names
from lmx.train.hooks.log import MetricLogger
from lmx.train.hooks.preemption import GracefulShutdown, PreemptionWatcher
from lmx.train.loop import StepFn, train
from lmx.train.program import RunContext
from lmx.train.step import Frozen, Metrics, TrainState


@dataclass(frozen=True)
class RunOptions:
    """Options that do not affect the result."""

    started: float | None = None  # of the process, by `run.goodput.now`; None: now
    grace: float | None = None  # seconds to save in after a signal; None: no limit
    # May differ from the start of the run: config paths, `Class.parameter` or `data`.
    allow_changes: tuple[str, ...] = ()
    stop_after: int | None = None  # the step after which to stop as at a signal


def train_run(
    name: str,
    config: Config[Experiment],
    path: Path,
    options: RunOptions = RunOptions(),
) -> RunDir:
    """Trains a run in its folder until it is finished.

    Raises ConfigError before anything is written, `StoppedError` after a signal stopped
    the run and its state is saved, `FaultError` if the run must not continue.
    """
    while True:
        trainer = Trainer(name, config, options)
        try:
            return trainer.train(path)
        except RewindError as rewind:
            options = replace(options, started=now())
            if distributed.is_leader():
                print_line(f"{rewind}")


class Trainer:
    """One attempt at a run, from its newest checkpoint to its last step."""

    def __init__(self, name: str, config: Config[Experiment], options: RunOptions):
        """Opens and checks all that the run needs. Writes nothing."""
        self.name, self.config, self.options = name, config, options
        self.timing = TimeAccounting(options.started)
        with explain_errors(config):
            self.experiment = config.build()
            self.run = self.experiment.open()
            if self.experiment.wandb:
                self.experiment.wandb.check()
            configs = unique_names(self.experiment.hooks)
            self.hooks = {name: hook.build(self.run) for name, hook in configs.items()}
        _check_same_data(self.run)

    def train(self, path: Path) -> RunDir:
        """Trains the rest of the run; does nothing if it is finished."""
        timeout = self.experiment.hang_timeout
        recorded = distributed.broadcast_from_leader(lambda: read_init_from(path))
        initial = InitialState(self.experiment.init_from, self.run, recorded)
        facts = self.run.describe(initial.first_step) | initial.facts
        metadata = initial_metadata(self.name, self.config, facts)
        with (
            closing(self._claim_dir(path, metadata)) as run_dir,
            closing(Watchdog(self.timing.get_state, timeout, run_dir.path)),
        ):
            policy = self.experiment.checkpoint
            checkpoints = CheckpointManager(
                run_dir.checkpoint_folder,
                policy.keep,
                policy.max_failures,
                origin={name: metadata[name] for name in ORIGIN},
                run_ids=read_run_ids(run_dir.path),
                always_keep=policy.at,
            )
            finished = distributed.broadcast_from_leader(lambda: run_dir.finished)
            if finished and checkpoints.list_steps()[-1:] == [self.run.steps]:
                return run_dir
            state = self._restore(checkpoints, initial)
            try:
                self._train(run_dir, checkpoints, state, facts["own_flops"])
            finally:
                self.timing.switch("stop")
                if distributed.is_leader():
                    with warn_on_error("plot the run"):
                        plot_run(run_dir.path)
                self.timing.record(self.timing.step)
        return run_dir

    def _claim_dir(self, path: Path, metadata: Mapping[str, Any]) -> RunDir:
        """The folder of the run, which the leader writes."""
        run_dir = RunDir(path, writable=False)

        def claim() -> None:
            nonlocal run_dir
            tokenizer = self.run.data.info.tokenizer
            allowed = self.options.allow_changes
            run_dir = RunDir.claim(path, self.config, metadata, tokenizer, allowed)

        distributed.broadcast_from_leader(claim)
        return run_dir

    def _restore(
        self, checkpoints: CheckpointManager, initial: InitialState
    ) -> TrainState:
        """The newest state, or the initial one."""
        checkpoints.prepare()
        on_damage = self.experiment.checkpoint.handle_damage
        resumes = bool(checkpoints.list_steps())
        with self.timing.measure("restore" if resumes else "init"):
            frozen = initial.load_frozen() if resumes else Frozen()
            abstract = self.run.abstract_state().trained
            state = checkpoints.restore_newest(abstract, on_damage)
            if state is None:
                state = initial.load()
            else:
                state = attach_frozen(state, frozen, checkpoints)
            if digests := digest_frozen(state.frozen):
                checkpoints.extra_metadata[KEY] = digests
            return state

    def _train(
        self,
        run_dir: RunDir,
        checkpoints: CheckpointManager,
        state: TrainState,
        flops: float,
    ) -> None:
        """Trains from the state to the last step; the run takes `flops` in all."""
        run, timing, step = self.run, self.timing, int(state.step)
        run_dir.wandb = self.experiment.wandb
        run_dir.truncate_after(step)
        timing.start_attempt(run_dir, step)
        skipped = load_skipped(run_dir.path)
        checkpoints.extra_metadata["skipped_data"] = skipped
        enabled = distributed.is_leader()
        progress = RunProgress(self.name, step, run.steps, enabled=enabled)
        check = self.experiment.guard.build(GuardContext(run_dir, checkpoints))
        every = self.experiment.log_every
        log = MetricLogger(run, run_dir, timing, progress, check=check, log_every=every)
        with (
            closing(progress),
            closing(prefetch(make_reader(run, skipped), step, run.steps)) as batches,
            closing(
                GracefulShutdown(
                    checkpoints,
                    run_dir,
                    timing,
                    flush=log.flush,
                    grace=self.options.grace,
                    stop_after=self.options.stop_after,
                )
            ) as stop,
            closing(PreemptionWatcher()),
        ):
            save = self.experiment.checkpoint.build(checkpoints, run_dir, run.steps)
            hooks = {SAVE: save, **self.hooks}
            runner = HookRunner(hooks, run_dir, timing, log.flush)
            runner.call_pending(state)
            timing.switch("step")
            step_fn = time_compile(timing, run.step)
            batches = time_data(timing, batches)
            train(step_fn, state, batches, steps=run.steps, hooks=[log, runner, stop])
            timing.switch("stop")
            checkpoints.wait()
            log.flush()
            require_written(run_dir)
            timing.record(run.steps)
            final = final_metadata(run_dir.path, flops, run.mesh.size)
            run_dir.update_metadata(**final)


def _check_same_data(run: RunContext) -> None:
    """Refuses data that differ between processes."""
    local = dict(run.data.info.fingerprint)
    leader = distributed.broadcast_from_leader(lambda: local)
    require(
        local == leader,
        f"the data of process {jax.process_index()} differ from those of process 0:"
        f" give all the same files.\n  {local}\n  {leader} in process 0",
    )


def time_data(
    timing: TimeAccounting, batches: Iterator[AnyBatch]
) -> Iterator[AnyBatch]:
    """The batches. Counts the seconds of waiting as `data`."""
    while True:
        with timing.measure("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def time_compile(timing: TimeAccounting, step_fn: StepFn) -> StepFn:
    """The step. Counts the first call for each shape of a batch as `compile`."""
    compiled: set[tuple[tuple[int, ...], ...]] = set()

    def step(state: TrainState, batch: AnyBatch) -> tuple[TrainState, Metrics]:
        shapes = tuple(x.shape for x in batch)
        phase = "step" if shapes in compiled else "compile"
        compiled.add(shapes)
        with timing.measure(phase):
            return step_fn(state, batch)

    return step
