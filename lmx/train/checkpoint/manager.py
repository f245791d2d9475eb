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

from lmx.config.registry import ConfigError
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.core.files import remove_dir
from lmx.core.rendezvous import PeerLostError
from lmx.train.checkpoint import writer
from lmx.train.checkpoint.digest import (
    Checksums,
    combine_digests,
    flatten_by_path,
    format_digest,
)
from lmx.train.checkpoint.directory import CheckpointDir
from lmx.train.checkpoint.reader import (
    SCHEMA,
    CheckpointFault,
    CheckpointReader,
    DamageError,
    Index,
)

State = TypeVar("State")
SavedParts = dict[str, list[Index]]  # of the parts of arrays that a process saves

_save_ids = (
    itertools.count()
)  # of what processes tell the first, in the same order in all


class SaveError(PeerLostError):
    """States cannot be saved, again and again: a restart may help, or more room."""


class CheckpointManager:
    """The states of one run, one folder a step, complete or not there at all.

    `origin` is what is told of whoever saves: run, commit, devices.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        max_failures: int = 3,
        origin: Mapping[str, Any] | None = None,
    ):
        self.folder, self.keep, self.max_failures = (
            folder.absolute(),
            keep,
            max_failures,
        )
        self.directory = CheckpointDir(self.folder)
        self.lineage = [{**(origin or {}), "parent": None}]
        self.checkpointer = writer.make_checkpointer()
        self.buffers = writer.HostBuffers()
        self.extra_metadata: dict[str, Any] = {}  # told with every state
        self.verified: set[int] = set()  # steps that were read and found as saved
        self.thread: threading.Thread | None = None
        self.last_error: str | None = (
            None  # why the last save failed; None if it did not
        )
        self.consecutive_failures = 0  # saves in a row

    def list_steps(self) -> list[int]:
        """The steps whose commit is on disk now, oldest first.

        Of many processes the first looks, so that all see the same.
        """
        return distributed.broadcast_from_leader(self.directory.list_steps)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """What the state of that step says of itself: `Reader.meta`."""
        return CheckpointReader(self.directory.step_path(step)).read_metadata()

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state off the devices and returns; the rest happens meanwhile.

        Waits for the save before it, so that at most one is on its way, and one copy
        in memory. A save counts, and makes older ones superfluous, once it was read
        again. One that fails is told of and does not end the training; `SaveError`
        is raised when so many failed in a row.
        """
        self.wait_pending()
        named, word = self.buffers.copy(flatten_by_path(state)), next(_save_ids)
        parts = writer.copy_to_host(named)
        places = {name: [p.index for p in found] for name, found in parts.items()}
        ask = partial(
            self._make_metadata, step, named, parts, word, dict(self.extra_metadata)
        )
        write = partial(
            self.checkpointer.save,
            self.directory.step_path(step),
            args=writer.make_save_args(named, ask),
            force=True,
        )
        copied = threading.Event()
        # What it starts are daemons too: those that a failed save leaves behind wait
        # for minutes, and nobody waits for them.
        self.thread = threading.Thread(
            target=self._write_and_verify,
            args=(step, write, copied, places, word),
            daemon=True,
        )
        self.thread.start()
        copied.wait()

    def wait(self) -> None:
        """Until the last save is on disk and read again, and only the newest are kept.

        Raises SaveError if it failed.
        """
        self.wait_pending()
        if self.consecutive_failures:
            raise SaveError(
                f"the last state could not be saved in {self.folder}: {self.last_error}. What"
                " was saved before is as it was: make room, and start again."
            )

    def wait_pending(self) -> None:
        """Until the save under way has come to its end, well or not."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        self.last_error = distributed.broadcast_from_leader(lambda: self.last_error)
        self._record_result()

    def record_failure(self, reason: str) -> None:
        """Counts a save that could not even be begun, in all processes, as failed."""
        self.wait_pending()
        self.last_error = reason
        self._record_result()

    def _record_result(self) -> None:
        self.consecutive_failures = (
            self.consecutive_failures + 1 if self.last_error else 0
        )
        if self.last_error and distributed.is_leader():
            print_line(
                f"SAVE FAILED, {self.consecutive_failures} of the {self.max_failures} in a row that end"
                f" the run: {self.last_error}. What was saved before is as it was."
            )
        if self.consecutive_failures >= self.max_failures:
            self.wait()

    def _make_metadata(
        self,
        step: int,
        named: dict[str, Any],
        parts: writer.HostShards,
        save_id: int,
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """What the state says of itself, in the first process."""
        sums = writer.checksum_shards(named, parts)
        said = distributed.gather_to_leader(f"saved/{save_id}", _to_json(sums)) or []
        digests = {
            name: format_digest(name, named[name], s)
            for name, s in _add_checksums(said).items()
        }
        newest = self.lineage[-1]
        return {
            "schema": SCHEMA,
            "step": step,
            "run_id": newest.get("run_id"),
            "parent": newest["parent"],
            "lineage": self.lineage,
            "extra": extra,
            "root": combine_digests(digests),
            "digests": digests,
        }

    def _write_and_verify(
        self,
        step: int,
        write: Callable[[], None],
        copied: threading.Event,
        saved_parts: SavedParts,
        save_id: int,
    ) -> None:
        """Has it written, reads what was committed, and keeps the newest few."""
        fate, sums = None, {}
        try:
            try:
                write()
            finally:
                copied.set()
                self.checkpointer.wait_until_finished()
            sums = CheckpointReader(self.directory.step_path(step)).compute_checksums(
                saved_parts
            )
        except Exception as error:
            fate = _format_error(error)
        try:
            said: Any = distributed.gather_to_leader(
                f"read/{save_id}", [fate, _to_json(sums)]
            )
            if said is not None:
                self.last_error = self._finish(step, said)
        except Exception as error:
            self.last_error = _format_error(error)

    def _finish(self, step: int, said: list[Any]) -> str | None:
        """Why a save failed of which the processes say this; None if it did not."""
        found = [fate for fate, _ in said if fate]
        fate = found[0] if found else self._check(step, [sums for _, sums in said])
        if fate is None:
            self.verified.add(step)
            self.directory.prune(self.keep, self.verified)
        self.directory.clean()
        if fate and step in self.directory.list_steps():
            self.directory.quarantine(step)
        return fate

    def _check(self, step: int, said: list[dict[str, list[int]]]) -> str | None:
        """Why a state that was just written is none; None if it is as it should be."""
        found = _compare_digests(
            CheckpointReader(self.directory.step_path(step)), _add_checksums(said)
        )
        return "\n".join(map(str, found)) or None

    def prepare(self) -> None:
        """Takes away what a process that was killed left half written or removed.

        Raises ConfigError where no state could be written.
        """
        trouble = distributed.broadcast_from_leader(self.directory.check_writable)
        if trouble:
            raise ConfigError(
                f"no state can be saved in {self.folder}: {trouble}. Make it a folder"
                " that can be written, or name another one for the run with --run."
            )

    def restore_newest(
        self, abstract_state: State, on_damage: Callable[[DamageError], None]
    ) -> State | None:
        """The newest whole state; None where nothing was ever saved.

        `past` hears of each newer one that is damaged, which is then set aside; what
        it raises is raised. Where none is whole, all stay, and ConfigError is raised.
        """
        damaged = []
        for step in reversed(self.list_steps()):
            try:
                state = self.restore(step, abstract_state)
            except DamageError as error:
                on_damage(error)
                damaged.append(step)
                continue
            for other in damaged:
                distributed.broadcast_from_leader(
                    partial(self.directory.quarantine, other)
                )
            meta = self.read_metadata(step)
            parent = {"step": step, "root": meta["root"]}
            self.lineage = [*meta["lineage"], {**self.lineage[-1], "parent": parent}]
            return state
        if damaged or distributed.broadcast_from_leader(
            lambda: bool(self.directory.list_quarantined())
        ):
            raise ConfigError(
                f"{self.folder} has no whole state to go on from: bring one back, name"
                " another folder with --run, or remove this one to begin anew."
            )
        return None

    def delete(self, step: int) -> None:
        """Takes the state of that step away."""
        distributed.broadcast_from_leader(
            lambda: remove_dir(self.directory.step_path(step))
        )

    def restore(self, step: int, abstract_state: State) -> State:
        """The state of that step, in the shapes and on the devices of `like`.

        `like` may be a part of it, as in `{"params": shapes}`. Its digests are taken
        as it is read: DamageError says which tensor of which file is not as saved.
        """
        wanted, reader = (
            flatten_by_path(abstract_state),
            CheckpointReader(self.directory.step_path(step)),
        )
        word, digests = next(_save_ids), reader.read_metadata()["digests"]
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
        said = (
            distributed.gather_to_leader(f"restored/{word}", (faults, _to_json(sums)))
            or []
        )
        faults = distributed.broadcast_from_leader(
            partial(_combine_faults, reader, said)
        )
        if faults:
            raise DamageError(
                reader.path, *(CheckpointFault(*fault) for fault in faults)
            )
        if wanted.keys() == digests.keys():
            self.verified.add(step)
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def _combine_faults(reader: CheckpointReader, said: list[Any]) -> list[CheckpointFault]:
    """What is wrong with a state of which the processes read this and found that."""
    known = {
        tuple(fault): CheckpointFault(*fault) for found, _ in said for fault in found
    }
    return list(known.values()) or _compare_digests(
        reader, _add_checksums([sums for _, sums in said])
    )


def _compare_digests(
    reader: CheckpointReader, total: Mapping[str, Checksums]
) -> list[CheckpointFault]:
    """The tensors whose sums are not those of what was saved."""
    digests = reader.read_metadata()["digests"]
    return [
        CheckpointFault(reader.find_file(name), name, "is not what was saved")
        for name, sums in total.items()
        if reader.format_digest(name, sums) != digests[name]
    ]


def _to_json(sums: dict[str, Checksums]) -> dict[str, list[int]]:
    return {name: found.tolist() for name, found in sums.items()}


def _add_checksums(said: list[dict[str, list[int]]]) -> dict[str, Checksums]:
    names = dict.fromkeys(name for sums in said for name in sums)
    found = {name: [sums[name] for sums in said if name in sums] for name in names}
    return {name: np.asarray(sums, np.uint64).sum(0) for name, sums in found.items()}


def _format_error(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
