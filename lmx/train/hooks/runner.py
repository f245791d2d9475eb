"""What is due beside the training, done one after the other and written down."""

from collections.abc import Callable, Mapping, Sequence

from lmx.core import distributed
from lmx.run.ledger import Ledger
from lmx.run.run_dir import METRICS, RunDir
from lmx.run.timing import TimeAccounting
from lmx.train.hook import Hook, PreSaveHook, ScheduledHook
from lmx.train.step import Metrics, TrainState

SAVE = "Save"


class HookRunner:
    """The hooks that are due after some steps, by name: checks, the save, the others.

    The ledger is told what is due before any of it is begun, and of each what became of
    it. So whoever takes the run up at a saved step knows what that step still lacks.
    `flush` writes the metrics of the step before that.
    """

    def __init__(
        self,
        hooks: Mapping[str, ScheduledHook],
        flush: Callable[[], None],
        directory: RunDir,
        account: TimeAccounting,
    ):
        order = sorted(hooks, key=lambda name: not isinstance(hooks[name], PreSaveHook))
        self.hooks = {name: hooks[name] for name in order}
        self.flush, self.account = flush, account
        self.directory, self.ledger = directory, Ledger(directory)

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        """Does what is due after that step."""
        self._run(
            [n for n, h in self.hooks.items() if h.is_due(done)], done, state, metrics
        )

    def run_pending(self, state: TrainState) -> None:
        """Does what was due after the step of a restored state and is not yet done."""
        step = int(state.step)
        settled = {
            SAVE,
            *distributed.broadcast_from_leader(lambda: self.ledger.list_done(step)),
        }
        due = self._due(step) if step else []
        self._run([name for name in due if name not in settled], step, state, {})

    def _due(self, done: int) -> list[str]:
        return [name for name, hook in self.hooks.items() if hook.is_due(done)]

    def _run(
        self, names: Sequence[str], done: int, state: TrainState, metrics: Metrics
    ) -> None:
        if not names:
            return
        self.flush()
        for name in names:
            self._record(done, name, "due")
        for name in names:
            try:
                with self.account.measure(name):
                    self.hooks[name].run(done, state, metrics)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                self.ledger.record(done, name, "failed", reason=why)
                error.add_note(f"@{name} failed after step {done}, and is still due.")
                raise
            self._record(done, name, "started" if name == SAVE else "done")
        self.account.record(done)

    def _record(self, done: int, name: str, state: str) -> None:
        size = self.directory.file_size(METRICS)  # what follows it is not of this thing
        self.ledger.record(done, name, state, metrics=size)


def unique_names(periodic: Sequence[Hook]) -> dict[str, Hook]:
    """Each by what the ledger calls it: its class, numbered from the second on."""
    found: dict[str, Hook] = {}
    for hook in periodic:
        kind = type(hook).__name__
        again = sum(type(other).__name__ == kind for other in found.values())
        found[f"{kind} {again + 1}" if again else kind] = hook
    return found
