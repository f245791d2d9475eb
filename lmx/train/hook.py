"""Hooks: actions of a training run after some of its steps, and their runner."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmx.config.registry import require
from lmx.core import distributed
from lmx.run.goodput import TimeAccounting
from lmx.run.run_dir import RunDir, Values, read_ledger
from lmx.train.program import RunContext
from lmx.train.step import Metrics, TrainState


@dataclass(frozen=True, kw_only=True)
class Hook:
    """An action after some steps of a run.

    `call` takes the number of steps done, the state and the metrics of the last step;
    it returns metrics to log, or None. If a run resumes at a step whose hooks were not
    done, they are called first, with empty metrics.
    """

    call: Callable[[int, TrainState, Metrics], Values | None]
    is_due: Callable[[int], bool] = lambda step: True  # after that many steps
    before_save: bool = False  # and may end the run instead


class HookConfig(ABC):
    """The configuration of a hook, for `Experiment.hooks`."""

    @abstractmethod
    def build(self, run: RunContext) -> Hook:
        """Opens and checks what the hook needs. Writes nothing."""


def every_steps(every: int, steps: int) -> Callable[[int], bool]:
    """A hook's `is_due`: after each `every` steps, and after the last of `steps`."""
    require(every >= 1, f"a hook is due every {every} steps: it must be 1 or more.")
    return lambda step: step % every == 0 or step == steps


SAVE = "save"  # the name of the hook that saves the state


class HookRunner:
    """Calls the hooks that are due after each step, most of them after the save.

    The ledger records all that are due as `due` before the first is called, and each as
    `done` after its call, so that a run that resumes can call the others. `flush` is
    called before the hooks.
    """

    def __init__(
        self,
        hooks: Mapping[str, Hook],
        run_dir: RunDir,
        timing: TimeAccounting,
        flush: Callable[[], None] = lambda: None,
    ):
        def order(item: tuple[str, Hook]) -> tuple[bool, bool]:
            return not item[1].before_save, item[0] != SAVE

        self.hooks = dict(sorted(hooks.items(), key=order))
        self.run_dir, self.timing, self.flush = run_dir, timing, flush

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Calls the hooks that are due after that step."""
        due = [name for name, hook in self.hooks.items() if hook.is_due(step)]
        self._call(due, step, state, metrics)

    def call_pending(self, state: TrainState) -> None:
        """Calls the hooks due at the restored step but not yet done; no save."""
        step = int(state.step)

        def find_done() -> list[str]:
            rows = read_ledger(self.run_dir.path)
            at_step = [row for row in rows if row["step"] == step]
            return [row["hook"] for row in at_step if row["status"] == "done"]

        done = {SAVE, *distributed.broadcast_from_leader(find_done)}
        due = [name for name, hook in self.hooks.items() if step and hook.is_due(step)]
        self._call([name for name in due if name not in done], step, state, {})

    def _call(
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
                self.run_dir.record_hook(step, name, "failed", reason=reason)
                error.add_note(f"@{name} failed after step {step}, and is still due.")
                raise
            self._record(step, name, "started" if name == SAVE else "done")
        self.timing.record(step)

    def _record(self, step: int, name: str, status: str) -> None:
        # Metrics beyond this size are not of this hook.
        size = self.run_dir.metrics_size
        self.run_dir.record_hook(step, name, status, metrics=size)


def unique_names(configs: Sequence[HookConfig]) -> dict[str, HookConfig]:
    """Names each config by its class; the second of a class is `NAME 2`, and so on."""
    named: dict[str, HookConfig] = {}
    for config in configs:
        kind = type(config).__name__
        count = 1 + sum(type(other).__name__ == kind for other in named.values())
        named[kind if count == 1 else f"{kind} {count}"] = config
    return named
