"""What is due beside the training, done one after the other and written down."""

from collections.abc import Callable, Mapping, Sequence

from lmx.core import process
from lmx.train.hooks.periodic import Check, Due, Periodic
from lmx.train.record.account import Account
from lmx.train.record.directory import METRICS, Directory
from lmx.train.record.ledger import Ledger
from lmx.train.step import Metrics, TrainState

SAVE = "Save"


class Chores:
    """The hooks that are due after some steps, by name: checks, the save, the others.

    The ledger is told what is due before any of it is begun, and of each what became of
    it. So whoever takes the run up at a saved step knows what that step still lacks.
    `flush` writes the metrics of the step before that.
    """

    def __init__(
        self,
        hooks: Mapping[str, Due],
        flush: Callable[[], None],
        directory: Directory,
        account: Account,
    ):
        order = sorted(hooks, key=lambda name: not isinstance(hooks[name], Check))
        self.hooks = {name: hooks[name] for name in order}
        self.flush, self.account = flush, account
        self.directory, self.ledger = directory, Ledger(directory)

    def __call__(self, done: int, state: TrainState, metrics: Metrics) -> None:
        """Does what is due after that step."""
        self._do(
            [n for n, h in self.hooks.items() if h.after(done)], done, state, metrics
        )

    def owed(self, state: TrainState) -> None:
        """Does what was due after the step of a restored state and is not yet done."""
        step = int(state.step)
        settled = {SAVE, *process.from_first(lambda: self.ledger.done(step))}
        due = self._due(step) if step else []
        self._do([name for name in due if name not in settled], step, state, {})

    def _due(self, done: int) -> list[str]:
        return [name for name, hook in self.hooks.items() if hook.after(done)]

    def _do(
        self, names: Sequence[str], done: int, state: TrainState, metrics: Metrics
    ) -> None:
        if not names:
            return
        self.flush()
        for name in names:
            self._note(done, name, "due")
        for name in names:
            try:
                with self.account.within(name):
                    self.hooks[name].do(done, state, metrics)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                self.ledger.note(done, name, "failed", why=why)
                error.add_note(f"@{name} failed after step {done}, and is still due.")
                raise
            self._note(done, name, "begun" if name == SAVE else "done")
        self.account.note(done)

    def _note(self, done: int, name: str, state: str) -> None:
        size = self.directory.size(METRICS)  # what follows it is not of this thing
        self.ledger.note(done, name, state, metrics=size)


def names(periodic: Sequence[Periodic]) -> dict[str, Periodic]:
    """Each by what the ledger calls it: its class, numbered from the second on."""
    found: dict[str, Periodic] = {}
    for hook in periodic:
        kind = type(hook).__name__
        again = sum(type(other).__name__ == kind for other in found.values())
        found[f"{kind} {again + 1}" if again else kind] = hook
    return found
