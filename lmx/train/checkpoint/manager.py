"""Saves the checkpoints of a run in the background, verifies them, restores them."""

import itertools
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from lmx.config.registry import ConfigError, require
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.core.files import REMOVED, remove_dir
from lmx.core.rendezvous import PeerLostError
from lmx.run.run_dir import SCHEMA
from lmx.train.checkpoint import writer
from lmx.train.checkpoint.digest import (
    Checksums,
    Index,
    Parts,
    add_checksums,
    checksum_parts,
    combine_digests,
    flatten_by_path,
    format_digest,
    get_local_parts,
)
from lmx.train.checkpoint.reader import (
    METADATA,
    MISMATCH,
    CheckpointFault,
    CheckpointReader,
    DamageError,
)

State = TypeVar("State")
SavedParts = dict[str, list[Index]]  # of the shards that this process saves, by array

STEP = re.compile(r"[0-9]{8,}")  # the name of a checkpoint
# The names of what Orbax has not finished, and of what is being removed.
UNFINISHED = re.compile(rf"[0-9]{{8,}}\.orbax-.+|{re.escape(REMOVED)}\w+")
QUARANTINED = ".damaged"  # suffix of the folder of a damaged checkpoint

_message_ids = itertools.count()  # of messages to the leader; equal in all processes


class SaveError(PeerLostError):
    """Checkpoints cannot be saved; a restart, or more disk space, may help."""


class CheckpointDir:
    """The checkpoints of a run by step. Only the leader changes them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def step_path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def list_steps(self) -> list[int]:
        """The steps that are committed, oldest first."""
        folders = [path for path in self.folder.glob("*") if STEP.fullmatch(path.name)]
        return sorted(int(path.name) for path in folders if _is_committed(path))

    def list_quarantined(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{QUARANTINED}*"))

    def quarantine(self, step: int) -> None:
        """Renames a damaged checkpoint, so that it is not found any more."""
        names = (f"{step:08d}{QUARANTINED}{n or ''}" for n in itertools.count())
        paths = (self.folder / name for name in names)
        self.step_path(step).rename(next(path for path in paths if not path.exists()))

    def prune(self, keep: int, always: Sequence[int] = ()) -> None:
        """Removes all but the newest checkpoints, and no folder that is none.

        Those of the steps `always` stay, and do not count.
        """
        for step in [x for x in self.list_steps() if x not in always][:-keep]:
            if (self.step_path(step) / METADATA).is_file():
                remove_dir(self.step_path(step))

    def clean(self) -> None:
        """Removes what a save or a removal left unfinished, as far as possible.

        Other files and folders stay, since a person may have put them there.
        A failed save may still be writing: the rest is removed after the next save, or
        when the run starts again.
        """
        for path in self.folder.glob("*"):
            if UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def check_writable(self) -> str | None:
        """Creates the folder and writes to it; the reason if that fails."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clean()
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"0")
        except OSError as error:
            return f"{error}"
        return None


def _is_committed(path: Path) -> bool:
    try:
        return ocp.utils.is_checkpoint_finalized(path)
    except (OSError, ValueError):  # removed meanwhile, or no folder
        return False


class CheckpointManager:
    """Saves and restores the checkpoints of a run; each is committed atomically.

    `origin` describes who saves them: run, commit, devices. `extra_metadata` goes into
    the metadata of each. Only checkpoints of `run_ids` are restored; None: of any run.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        max_failures: int = 3,
        origin: Mapping[str, Any] | None = None,
        run_ids: Sequence[str] | None = None,
        always_keep: Sequence[int] = (),
    ):
        self.folder, self.run_ids = folder.absolute(), run_ids
        self.always_keep = always_keep
        self.keep, self.max_failures = keep, max_failures
        self.directory = CheckpointDir(self.folder)
        self.lineage = [{**(origin or {}), "parent": None}]
        self.checkpointer = writer.make_checkpointer()
        self.buffers = writer.HostBuffers()
        self.extra_metadata: dict[str, Any] = {}
        self.thread: threading.Thread | None = None  # of the save in progress
        self.last_error: str | None = None  # of the last save
        self.consecutive_failures = 0

    def list_steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; equal in all processes."""
        return distributed.broadcast_from_leader(self.directory.list_steps)

    def read_metadata(self, step: int) -> dict[str, Any]:
        return CheckpointReader(self.directory.step_path(step)).read_metadata()

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state off the devices and returns; a thread does the rest.

        Waits for the save before it, so that there is one copy in memory. Old
        checkpoints are removed once this one was read back. A save that fails is
        reported and does not end the training; SaveError is raised after
        `max_failures` in a row.
        """
        self.wait_pending()
        arrays = self.buffers.copy(flatten_by_path(state))
        shards, save_id = get_local_parts(arrays), next(_message_ids)
        parts = {name: [index for index, _ in found] for name, found in shards.items()}
        origin = self.lineage[-1]
        facts = {
            "schema": SCHEMA,
            "step": step,
            "run_id": origin.get("run_id"),
            "parent": origin["parent"],
            "lineage": self.lineage,
            "extra": dict(self.extra_metadata),
        }

        def make_metadata() -> dict[str, Any]:
            """The metadata of the checkpoint; complete in the leader."""
            digests = digest_shards(arrays, shards, f"saved/{save_id}")
            return {**facts, "root": combine_digests(digests), "digests": digests}

        write = partial(
            self.checkpointer.save,
            self.directory.step_path(step),
            args=writer.make_save_args(arrays, make_metadata),
            force=True,
        )
        copied = threading.Event()
        # A daemon, as are the threads that it starts: those that a failed save leaves
        # behind wait for minutes.
        args = (step, write, copied, parts, save_id)
        self.thread = threading.Thread(target=self._save, args=args, daemon=True)
        self.thread.start()
        copied.wait()

    def wait(self) -> None:
        """Waits until the last save is committed; raises SaveError if it failed."""
        self.wait_pending()
        if self.consecutive_failures:
            raise SaveError(
                f"the last checkpoint could not be saved in {self.folder}:"
                f" {self.last_error}. Older checkpoints are intact: free some disk"
                " space, and start the same command again."
            )

    def wait_pending(self) -> None:
        """Waits for the save in progress, whether it succeeds or fails."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        self._record_result(distributed.broadcast_from_leader(lambda: self.last_error))

    def record_failure(self, reason: str) -> None:
        """Counts a save that could not be started, in all processes, as failed."""
        self.wait_pending()
        self._record_result(reason)

    def _record_result(self, error: str | None) -> None:
        self.last_error = error
        self.consecutive_failures = self.consecutive_failures + 1 if error else 0
        if error and distributed.is_leader():
            print_line(
                f"SAVE FAILED, {self.consecutive_failures} of the {self.max_failures}"
                f" in a row that end the run: {error}. Older checkpoints are intact."
            )
        if self.consecutive_failures >= self.max_failures:
            self.wait()

    def _save(
        self,
        step: int,
        write: Callable[[], None],
        copied: threading.Event,
        parts: SavedParts,
        save_id: int,
    ) -> None:
        """Writes a checkpoint, and reads back what this process wrote of it."""
        error, sums = None, {}
        try:
            try:
                write()
            finally:
                copied.set()
                self.checkpointer.wait_until_finished()
            path = self.directory.step_path(step)
            sums = CheckpointReader(path).compute_checksums(parts)
        except Exception as raised:
            error = _format_error(raised)
        try:
            reports = distributed.gather_to_leader(f"read/{save_id}", (error, sums))
            if reports is not None:
                self.last_error = self._finish(step, reports)
        except Exception as raised:
            self.last_error = _format_error(raised)

    def _finish(self, step: int, reports: Sequence[Any]) -> str | None:
        """Prunes old checkpoints if the save succeeded; the reason if it failed."""
        error = next((error for error, _ in reports if error), None)
        if error is None:
            reader = CheckpointReader(self.directory.step_path(step))
            faults = _find_mismatches(reader, [sums for _, sums in reports])
            error = "\n".join(map(str, faults)) or None
        if error is None:
            self.directory.prune(self.keep, self.always_keep)
        self.directory.clean()
        if error and step in self.directory.list_steps():
            self.directory.quarantine(step)
        return error

    def prepare(self) -> None:
        """Removes unfinished saves and removals; ConfigError if it cannot write."""
        error = distributed.broadcast_from_leader(self.directory.check_writable)
        require(
            not error,
            f"no checkpoint can be saved in {self.folder}: {error}. Make the folder"
            " writable, or name another one for the run with --run.",
        )

    def restore_newest(
        self, abstract_state: State, on_damage: Callable[[DamageError], None]
    ) -> State | None:
        """Restores the newest intact checkpoint; None if none was ever saved.

        Calls `on_damage`, which may raise, for each newer one that is damaged, and
        quarantines those. If all are damaged they stay, and ConfigError is raised.
        """
        damaged = []
        for step in reversed(self.list_steps()):
            try:
                state = self.restore(step, abstract_state)
            except DamageError as error:
                on_damage(error)
                damaged.append(step)
                continue
            for newer in damaged:
                quarantine = partial(self.directory.quarantine, newer)
                distributed.broadcast_from_leader(quarantine)
            metadata = self.read_metadata(step)
            parent = {"step": step, "root": metadata["root"]}
            self.lineage = [
                *metadata["lineage"],
                {**self.lineage[-1], "parent": parent},
            ]
            return state
        quarantined = distributed.broadcast_from_leader(
            lambda: bool(self.directory.list_quarantined())
        )
        require(
            not damaged and not quarantined,
            f"{self.folder} has no intact checkpoint to resume from: restore"
            " one, name another folder with --run, or remove this one to start"
            " from the beginning.",
        )
        return None

    def delete(self, step: int) -> None:
        path = self.directory.step_path(step)
        distributed.broadcast_from_leader(lambda: remove_dir(path))

    def restore(self, step: int, abstract_state: State) -> State:
        """The checkpoint of that step, or the part of it that `abstract_state` has.

        Raises DamageError, which names tensors and files, if what is read is not what
        was saved.
        """
        abstract = flatten_by_path(abstract_state)
        reader = CheckpointReader(self.directory.step_path(step))
        metadata = reader.read_metadata()
        digests, run_id = metadata["digests"], metadata.get("run_id")
        require(
            self.run_ids is None or run_id in self.run_ids,
            f"{reader.path} is a checkpoint of run {run_id}, and this is run"
            f" {(self.run_ids or [''])[0]}: move it out of the folder, or name another"
            " folder with --run.",
        )
        if unknown := sorted(abstract.keys() - digests.keys()):
            raise ConfigError(
                f"{reader.path} has no {unknown[0]}: it is a checkpoint of another"
                " model or optimizer."
            )
        loaded, faults = {}, ()
        try:
            loaded = reader.load(abstract)
        except DamageError as error:
            faults = error.faults
        sums = {name: found for name, (_, found) in loaded.items()}
        message = f"restored/{next(_message_ids)}"
        reports = distributed.gather_to_leader(message, (faults, sums)) or []
        find_faults = partial(_find_faults, reader, reports)
        if faults := distributed.broadcast_from_leader(find_faults):
            raise DamageError(reader.path, *(CheckpointFault(*f) for f in faults))
        leaves = [loaded[name][0] for name in abstract]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def _find_faults(reader: CheckpointReader, reports: Sequence[Any]) -> list[Any]:
    """The damage in a checkpoint, given the faults and checksums of all processes."""
    faults = {tuple(fault): None for found, _ in reports for fault in found}
    return [*faults] or _find_mismatches(reader, [sums for _, sums in reports])


def _find_mismatches(
    reader: CheckpointReader, reports: Sequence[Mapping[str, Checksums]]
) -> list[CheckpointFault]:
    """The tensors whose checksums are not those of what was saved."""
    digests = reader.read_metadata()["digests"]
    return [
        CheckpointFault(reader.find_file(name), name, MISMATCH)
        for name, sums in add_reports(reports).items()
        if reader.format_digest(name, sums) != digests[name]
    ]


def digest_shards(
    arrays: Mapping[str, Any], shards: Mapping[str, Parts], message: str
) -> dict[str, str]:
    """The digest of each array, given the shards of this process; in the leader."""
    sums = {n: checksum_parts(p, arrays[n].shape) for n, p in shards.items()}
    totals = add_reports(distributed.gather_to_leader(message, sums) or [])
    return {n: format_digest(n, arrays[n], total) for n, total in totals.items()}


def add_reports(reports: Sequence[Mapping[str, Checksums]]) -> dict[str, Checksums]:
    """The checksums of tensors, given those of the parts that each process has."""
    names = dict.fromkeys(name for sums in reports for name in sums)
    return {n: add_checksums(sums[n] for sums in reports if n in sums) for n in names}


def _format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
