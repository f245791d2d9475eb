"""Runs the hooks of a training run and records them in the ledger."""

from collections.abc import Mapping, Sequence

from lmx.core import distributed
from lmx.run.ledger import Ledger
from lmx.run.run_dir import METRICS, RunDir
from lmx.run.timing import TimeAccounting
from lmx.train.hook import Hook, HookConfig, Order
from lmx.train.step import Metrics, TrainState

SAVE = "save"  # the name of the hook that saves the state


class HookRunner:
    """Calls hooks after each step, in their order.

    Hooks between `OBSERVE` and `STOP` are recorded in the ledger: all that are due as
    `due`, before the first of them is called, and each as `done` after its call. A run
    that resumes from a checkpoint thus can call those that were not done.
    """

    def __init__(
        self, hooks: Mapping[str, Hook], run_dir: RunDir, timing: TimeAccounting
    ):
        self.hooks = dict(sorted(hooks.items(), key=lambda item: item[1].order))
        self.run_dir, self.timing, self.ledger = run_dir, timing, Ledger(run_dir)

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Calls the hooks that are due after that step."""
        for hook in self.hooks.values():
            if hook.order == Order.OBSERVE:
                hook.call(step, state, metrics)
        self._call_recorded(self._find_due(step), step, state, metrics)
        for hook in self.hooks.values():
            if hook.order == Order.STOP and hook.is_due(step):
                self.flush()
                hook.call(step, state, metrics)

    def call_pending(self, state: TrainState) -> None:
        """Calls the hooks that were due at a restored state and not done.

        The state itself is saved.
        """
        step = int(state.step)
        done = distributed.broadcast_from_leader(lambda: self.ledger.list_done(step))
        due = self._find_due(step) if step else []
        self._call_recorded([n for n in due if n not in (SAVE, *done)], step, state, {})

    def flush(self) -> None:
        """Completes the deferred work of all hooks."""
        for hook in self.hooks.values():
            hook.flush()

    def _find_due(self, step: int) -> list[str]:
        return [
            name
            for name, hook in self.hooks.items()
            if Order.OBSERVE < hook.order < Order.STOP and hook.is_due(step)
        ]

    def _call_recorded(
        self, names: Sequence[str], step: int, state: TrainState, metrics: Metrics
    ) -> None:
        if not names:
            return
        self.flush()
        for name in names:
            self._record(step, name, "due")
        for name in names:
            try:
                with self.timing.measure(name):
                    values = self.hooks[name].call(step, state, metrics)
                    if values is not None:
                        self.run_dir.log_metrics(step, values)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                self.ledger.record(step, name, "failed", reason=reason)
                error.add_note(f"@{name} failed after step {step}, and is still due.")
                raise
            self._record(step, name, "started" if name == SAVE else "done")
        self.timing.record(step)

    def _record(self, step: int, name: str, status: str) -> None:
        # Metrics beyond this size are not of this hook.
        size = self.run_dir.file_size(METRICS)
        self.ledger.record(step, name, status, metrics=size)


def unique_names(configs: Sequence[HookConfig]) -> dict[str, HookConfig]:
    """Each config by the name of its class, numbered from the second of a class on."""
    named: dict[str, HookConfig] = {}
    for config in configs:
        kind = type(config).__name__
        count = 1 + sum(type(other).__name__ == kind for other in named.values())
        named[kind if count == 1 else f"{kind} {count}"] = config
    return named
