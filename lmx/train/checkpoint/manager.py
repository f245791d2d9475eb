"""Saves the checkpoints of a run in the background, verifies them, restores them."""

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from lmx.config.registry import ConfigError
from lmx.core import distributed
from lmx.core.console import print_line
from lmx.core.files import remove_dir, write_atomic
from lmx.core.rendezvous import PeerLostError
from lmx.run.schema import SCHEMA
from lmx.train.checkpoint.digest import (
    add_checksums,
    combine_digests,
    flatten_by_path,
    format_digest,
)
from lmx.train.checkpoint.directory import CheckpointDir
from lmx.train.checkpoint.reader import (
    METADATA,
    MISMATCH,
    CheckpointFault,
    CheckpointReader,
    DamageError,
    checksum_metadata,
)
from lmx.train.checkpoint.storage import (
    HostBuffers,
    HostTensor,
    StoredTensor,
    write_tensors,
)

State = TypeVar("State")

_message_ids = itertools.count()  # of messages to the leader; equal in all processes


class SaveError(PeerLostError):
    """Checkpoints cannot be saved; a restart, or more disk space, may help."""


class CheckpointManager:
    """The checkpoints of one run: each is complete, or does not exist.

    `origin` describes what saves them: run, commit, devices. `extra_metadata` goes into
    the metadata of each.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        max_failures: int = 3,
        origin: Mapping[str, Any] | None = None,
    ):
        self.folder = folder.absolute()
        self.keep, self.max_failures = keep, max_failures
        self.directory = CheckpointDir(self.folder)
        self.lineage = [{**(origin or {}), "parent": None}]
        self.buffers = HostBuffers()
        self.extra_metadata: dict[str, Any] = {}
        self.verified: set[int] = set()  # steps that were read completely
        self.thread: threading.Thread | None = None  # of the save in progress
        self.last_error: str | None = None  # of the last save
        self.consecutive_failures = 0

    def list_steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; equal in all processes."""
        return distributed.broadcast_from_leader(self.directory.list_steps)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """The metadata of that checkpoint: `CheckpointReader.read_metadata`."""
        return CheckpointReader(self.directory.step_path(step)).read_metadata()

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state off the devices and returns; a thread writes it.

        Waits for the save before it. The checkpoint is committed, and old ones are
        removed, once it was read back. A save that fails is reported and does not end
        the training; SaveError is raised after `max_failures` in a row.
        """
        self.wait_pending()
        tensors = self.buffers.copy(flatten_by_path(state))
        message = f"saved/{next(_message_ids)}"
        args = (step, tensors, message, dict(self.extra_metadata))
        self.thread = threading.Thread(target=self._save, args=args, daemon=True)
        self.thread.start()

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
        self, step: int, tensors: Mapping[str, HostTensor], message: str, extra: Any
    ) -> None:
        """Writes the shards of this process; the leader commits those of all."""
        try:
            report = (None, self._write(step, tensors))
        except Exception as error:
            report = (_format_error(error), {})
        try:
            reports = distributed.gather_to_leader(message, report)
            if reports is not None:
                self.last_error = self._commit(step, reports, extra)
        except Exception as error:
            self.last_error = _format_error(error)

    def _write(self, step: int, tensors: Mapping[str, HostTensor]) -> dict[str, Any]:
        """Writes shards and reads them back; where they are stored."""
        path = self.directory.temporary_path(step)
        stored = write_tensors(path, tensors)
        if faults := CheckpointReader(path, stored).verify():
            raise DamageError(path, *faults)
        return {name: tensor.to_json() for name, tensor in stored.items()}

    def _commit(self, step: int, reports: Sequence[Any], extra: Any) -> str | None:
        """Commits what all processes wrote; the reason if one could not."""
        error = next((error for error, _ in reports if error), None)
        if error is None:
            stored = _merge_tensors([tensors for _, tensors in reports])
            metadata = json.dumps(self._make_metadata(step, stored, extra)).encode()
            write_atomic(self.directory.temporary_path(step) / METADATA, metadata)
            self.directory.commit(step)
            self.verified.add(step)
            self.directory.prune(self.keep, self.verified)
        self.directory.clean()
        return error

    def _make_metadata(
        self, step: int, stored: Mapping[str, Any], extra: Any
    ) -> dict[str, Any]:
        digests = {}
        for name, fields in stored.items():
            tensor = StoredTensor.from_json(fields)
            sums = add_checksums(part.checksums for part in tensor.parts)
            digests[name] = format_digest(name, tensor, sums)
        metadata = {
            "schema": SCHEMA,
            "step": step,
            "run_id": self.lineage[-1].get("run_id"),
            "parent": self.lineage[-1]["parent"],
            "lineage": self.lineage,
            "extra": extra,
            "root": combine_digests(digests),
            "digests": digests,
            "tensors": stored,
        }
        return metadata | {"checksum": checksum_metadata(metadata)}

    def prepare(self) -> None:
        """Removes what an interrupted save or removal left behind.

        Raises ConfigError if no checkpoint can be written.
        """
        error = distributed.broadcast_from_leader(self.directory.check_writable)
        if error:
            raise ConfigError(
                f"no checkpoint can be saved in {self.folder}: {error}. Make the folder"
                " writable, or name another one for the run with --run."
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
        if damaged or quarantined:
            raise ConfigError(
                f"{self.folder} has no intact checkpoint to resume from: bring one"
                " back, name another folder with --run, or remove this one to start"
                " from the beginning."
            )
        return None

    def delete(self, step: int) -> None:
        """Removes the checkpoint of that step."""
        path = self.directory.step_path(step)
        distributed.broadcast_from_leader(lambda: remove_dir(path))

    def restore(self, step: int, abstract_state: State) -> State:
        """The checkpoint of that step, with the shapes and shardings given.

        `abstract_state` may be a part of what was saved, as in `{"params": shapes}`.
        Raises DamageError, which names tensors and files, if what is read is not what
        was saved.
        """
        abstract = flatten_by_path(abstract_state)
        reader = CheckpointReader(self.directory.step_path(step))
        if unknown := sorted(abstract.keys() - reader.tensors.keys()):
            raise ConfigError(
                f"{reader.path} has no {unknown[0]}: it is a checkpoint of another"
                " model or optimizer."
            )
        loaded, faults = {}, ()
        try:
            loaded = reader.load(abstract)
        except DamageError as error:
            faults = error.faults
        sums = {name: found.tolist() for name, (_, found) in loaded.items()}
        message = f"restored/{next(_message_ids)}"
        reports = distributed.gather_to_leader(message, (faults, sums)) or []
        faults = distributed.broadcast_from_leader(
            partial(_find_faults, reader, reports)
        )
        if faults:
            raise DamageError(reader.path, *(CheckpointFault(*f) for f in faults))
        if abstract.keys() == reader.tensors.keys():
            self.verified.add(step)
        leaves = [loaded[name][0] for name in abstract]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def _merge_tensors(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors with the parts that all processes stored."""
    return {
        name: {**fields, "parts": [p for r in reports for p in r[name]["parts"]]}
        for name, fields in reports[0].items()
    }


def _find_faults(reader: CheckpointReader, reports: Sequence[Any]) -> list[Any]:
    """The damage in a checkpoint, given the faults and checksums of all processes."""
    if faults := {tuple(fault): None for found, _ in reports for fault in found}:
        return list(faults)
    digests = reader.read_metadata()["digests"]
    for name in dict.fromkeys(name for _, sums in reports for name in sums):
        tensor = reader.tensors[name]
        total = add_checksums(sums[name] for _, sums in reports if name in sums)
        if format_digest(name, tensor, total) != digests[name]:
            fault = CheckpointFault(tensor.parts[0].file, name, MISMATCH)
            return list(reader.verify() or [fault])
    return []


def _format_error(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
