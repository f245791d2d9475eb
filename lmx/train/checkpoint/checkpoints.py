"""The states of a run on disk: saved beside the training, trusted once read again."""

import itertools
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from lmx.config.names import ConfigError
from lmx.core import process
from lmx.core.lobby import LostError
from lmx.data.cache import discard
from lmx.data.progress import say
from lmx.train.checkpoint import writer
from lmx.train.checkpoint.digest import Sums, by_path, root, told
from lmx.train.checkpoint.reader import SCHEMA, DamageError, Fault, Index, Reader
from lmx.train.checkpoint.shelf import Shelf

State = TypeVar("State")
Places = dict[str, list[Index]]  # of the parts of arrays that a process saves

_words = itertools.count()  # of what processes tell the first, in the same order in all


class SaveError(LostError):
    """States cannot be saved, again and again: a restart may help, or more room."""


class Checkpoints:
    """The states of one run, one folder a step, complete or not there at all.

    `origin` is what is told of whoever saves: run, commit, devices.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        failures: int = 3,
        origin: Mapping[str, Any] | None = None,
    ):
        self.folder, self.keep, self.failures = folder.absolute(), keep, failures
        self.shelf = Shelf(self.folder)
        self.lineage = [{**(origin or {}), "parent": None}]
        self.writer = writer.orbax()
        self.copies = writer.Copies()
        self.extra: dict[str, Any] = {}  # told with every state
        self.whole: set[int] = set()  # steps that were read and found as saved
        self.saving: threading.Thread | None = None
        self.fate: str | None = None  # why the last save failed; None if it did not
        self.failed = 0  # saves in a row

    def steps(self) -> list[int]:
        """The steps whose commit is on disk now, oldest first.

        Of many processes the first looks, so that all see the same.
        """
        return process.from_first(self.shelf.steps)

    def meta(self, step: int) -> dict[str, Any]:
        """What the state of that step says of itself: `Reader.meta`."""
        return Reader(self.shelf.path(step)).meta()

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state off the devices and returns; the rest happens meanwhile.

        Waits for the save before it, so that at most one is on its way, and one copy
        in memory. A save counts, and makes older ones superfluous, once it was read
        again. One that fails is told of and does not end the training; `SaveError`
        is raised when so many failed in a row.
        """
        self.settle()
        named, word = self.copies.of(by_path(state)), next(_words)
        parts = writer.on_host(named)
        places = {name: [p.index for p in found] for name, found in parts.items()}
        ask = partial(self._facts, step, named, parts, word, dict(self.extra))
        write = partial(
            self.writer.save,
            self.shelf.path(step),
            args=writer.args(named, ask),
            force=True,
        )
        copied = threading.Event()
        # What it starts are daemons too: those that a failed save leaves behind wait
        # for minutes, and nobody waits for them.
        self.saving = threading.Thread(
            target=self._save, args=(step, write, copied, places, word), daemon=True
        )
        self.saving.start()
        copied.wait()

    def wait(self) -> None:
        """Until the last save is on disk and read again, and only the newest are kept.

        Raises SaveError if it failed.
        """
        self.settle()
        if self.failed:
            raise SaveError(
                f"the last state could not be saved in {self.folder}: {self.fate}. What"
                " was saved before is as it was: make room, and start again."
            )

    def settle(self) -> None:
        """Until the save under way has come to its end, well or not."""
        if self.saving is None:
            return
        self.saving.join()
        self.saving = None
        self.fate = process.from_first(lambda: self.fate)
        self._count()

    def miss(self, why: str) -> None:
        """Counts a save that could not even be begun, in all processes, as failed."""
        self.settle()
        self.fate = why
        self._count()

    def _count(self) -> None:
        self.failed = self.failed + 1 if self.fate else 0
        if self.fate and process.first():
            say(
                f"SAVE FAILED, {self.failed} of the {self.failures} in a row that end"
                f" the run: {self.fate}. What was saved before is as it was."
            )
        if self.failed >= self.failures:
            self.wait()

    def _facts(
        self,
        step: int,
        named: dict[str, Any],
        parts: writer.Parts,
        word: int,
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """What the state says of itself, in the first process."""
        sums = writer.sums_of(named, parts)
        said = process.to_first(f"saved/{word}", _plain(sums)) or []
        digests = {name: told(name, named[name], s) for name, s in _sum(said).items()}
        newest = self.lineage[-1]
        return {
            "schema": SCHEMA,
            "step": step,
            "run_id": newest.get("run_id"),
            "parent": newest["parent"],
            "lineage": self.lineage,
            "extra": extra,
            "root": root(digests),
            "digests": digests,
        }

    def _save(
        self,
        step: int,
        write: Callable[[], None],
        copied: threading.Event,
        places: Places,
        word: int,
    ) -> None:
        """Has it written, reads what was committed, and keeps the newest few."""
        fate, sums = None, {}
        try:
            try:
                write()
            finally:
                copied.set()
                self.writer.wait_until_finished()
            sums = Reader(self.shelf.path(step)).sums(places)
        except Exception as error:
            fate = _said(error)
        try:
            said: Any = process.to_first(f"read/{word}", [fate, _plain(sums)])
            if said is not None:
                self.fate = self._ended(step, said)
        except Exception as error:
            self.fate = _said(error)

    def _ended(self, step: int, said: list[Any]) -> str | None:
        """Why a save failed of which the processes say this; None if it did not."""
        found = [fate for fate, _ in said if fate]
        fate = found[0] if found else self._judged(step, [sums for _, sums in said])
        if fate is None:
            self.whole.add(step)
            self.shelf.thin(self.keep, self.whole)
        self.shelf.clean()
        if fate and step in self.shelf.steps():
            self.shelf.set_aside(step)
        return fate

    def _judged(self, step: int, said: list[dict[str, list[int]]]) -> str | None:
        """Why a state that was just written is none; None if it is as it should be."""
        found = _faults(Reader(self.shelf.path(step)), _sum(said))
        return "\n".join(map(str, found)) or None

    def clean(self) -> None:
        """Takes away what a process that was killed left half written or removed.

        Raises ConfigError where no state could be written.
        """
        trouble = process.from_first(self.shelf.trouble)
        if trouble:
            raise ConfigError(
                f"no state can be saved in {self.folder}: {trouble}. Make it a folder"
                " that can be written, or name another one for the run with --run."
            )

    def newest(self, like: State, past: Callable[[DamageError], None]) -> State | None:
        """The newest whole state; None where nothing was ever saved.

        `past` hears of each newer one that is damaged, which is then set aside; what
        it raises is raised. Where none is whole, all stay, and ConfigError is raised.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, like)
            except DamageError as error:
                past(error)
                damaged.append(step)
                continue
            for other in damaged:
                process.from_first(partial(self.shelf.set_aside, other))
            meta = self.meta(step)
            parent = {"step": step, "root": meta["root"]}
            self.lineage = [*meta["lineage"], {**self.lineage[-1], "parent": parent}]
            return state
        if damaged or process.from_first(lambda: bool(self.shelf.damaged())):
            raise ConfigError(
                f"{self.folder} has no whole state to go on from: bring one back, name"
                " another folder with --run, or remove this one to begin anew."
            )
        return None

    def remove(self, step: int) -> None:
        """Takes the state of that step away."""
        process.from_first(lambda: discard(self.shelf.path(step)))

    def restore(self, step: int, like: State) -> State:
        """The state of that step, in the shapes and on the devices of `like`.

        `like` may be a part of it, as in `{"params": shapes}`. Its digests are taken
        as it is read: DamageError says which tensor of which file is not as saved.
        """
        wanted, reader = by_path(like), Reader(self.shelf.path(step))
        word, digests = next(_words), reader.meta()["digests"]
        if unknown := sorted(wanted.keys() - digests):
            raise ConfigError(
                f"{reader.path} has no {unknown[0]}: it is the state of another model"
                " or optimizer."
            )
        faults, arrays, sums = [], {}, {}
        try:
            arrays, sums = reader.load(wanted)
        except DamageError as error:
            faults = list(error.faults)
        said = process.to_first(f"restored/{word}", (faults, _plain(sums))) or []
        faults = process.from_first(partial(_verdict, reader, said))
        if faults:
            raise DamageError(reader.path, *(Fault(*fault) for fault in faults))
        if wanted.keys() == digests.keys():
            self.whole.add(step)
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _verdict(reader: Reader, said: list[Any]) -> list[Fault]:
    """What is wrong with a state of which the processes read this and found that."""
    known = {tuple(fault): Fault(*fault) for found, _ in said for fault in found}
    return list(known.values()) or _faults(reader, _sum([sums for _, sums in said]))


def _faults(reader: Reader, total: Mapping[str, Sums]) -> list[Fault]:
    """The tensors whose sums are not those of what was saved."""
    digests = reader.meta()["digests"]
    return [
        Fault(reader.file(name), name, "is not what was saved")
        for name, sums in total.items()
        if reader.told(name, sums) != digests[name]
    ]


def _plain(sums: dict[str, Sums]) -> dict[str, list[int]]:
    return {name: found.tolist() for name, found in sums.items()}


def _sum(said: list[dict[str, list[int]]]) -> dict[str, Sums]:
    names = dict.fromkeys(name for sums in said for name in sums)
    found = {name: [sums[name] for sums in said if name in sums] for name in names}
    return {name: np.asarray(sums, np.uint64).sum(0) for name, sums in found.items()}


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
