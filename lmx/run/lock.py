"""Locks the folder of a run: one process at a time writes to it."""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from lmx.config.registry import ConfigError
from lmx.core.console import print_line
from lmx.core.files import write_atomic
from lmx.core.rendezvous import EXIT_RESTART

LOCK, LEASE = "lock", "lease"  # files of a run's folder while it is written to
LEASE_SECONDS = 40.0  # a lease that is not renewed for so long expires
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system
MOUNTS = Path("/proc/self/mounts")


class LostLockError(Exception):
    """Another process may write to the folder that this one has locked."""

    exit_status = 1


class Lock:
    """A kernel lock on a file, which ends with the process that holds it."""

    def __init__(self, folder: Path):
        """Acquires it; ConfigError if another process has it, OSError without locks."""
        self.path = folder / LOCK
        while True:
            self.file = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666
            )
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_owner():
                    break  # else the process that had it has just removed the file
            except OSError as error:
                os.close(self.file)
                held = isinstance(error, BlockingIOError)
                raise (_held(self.path) if held else error) from None
            os.close(self.file)
        os.ftruncate(self.file, 0)
        os.write(self.file, json.dumps(_describe_self()).encode())

    def check(self) -> None:
        """Raises LostLockError if the folder or the lock in it is not ours any more."""
        if not self._is_owner():
            raise LostLockError(
                f"{self.path} was removed while this process was writing to its folder:"
                " nothing more is written to it, as another process may. Start the same"
                " command again, which resumes from the newest checkpoint there."
            )

    def _is_owner(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.file), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        if self._is_owner():
            self.path.unlink()
        os.close(self.file)


class Lease:
    """A file that its owner keeps renewing, for file systems without shared locks.

    No clocks are compared: another process watches the file for `duration` seconds,
    and takes it over if nothing changes. A process whose lease was taken over, or that
    cannot renew it for half that time, exits with 75.
    """

    def __init__(self, folder: Path, duration: float = LEASE_SECONDS):
        """Acquires it, which may take `duration`; ConfigError if another has it."""
        self.path, self.duration = folder / LEASE, duration
        self.contents = _describe_self() | {
            "token": secrets.token_hex(8),
            "renewals": 0,
        }
        self._acquire()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._renew, daemon=True)
        self.thread.start()

    def _acquire(self) -> None:
        try:
            with self.path.open("x") as file:
                file.write(json.dumps(self.contents))
            return
        except FileExistsError:
            print_line(f"{_held(self.path)}\nwaiting {self.duration:.0f} s for it")
        holder, deadline = _read_holder(self.path), time.monotonic() + self.duration
        while time.monotonic() < deadline:
            time.sleep(self.duration / 40)
            if _read_holder(self.path) != holder:
                raise _held(self.path)
        self._write()
        time.sleep(self.duration / 20)  # another process may have waited as long
        if not self._is_owner():
            raise _held(self.path)

    def _is_owner(self) -> bool:
        return _read_holder(self.path).get("token") == self.contents["token"]

    def _write(self) -> None:
        self.contents["renewals"] += 1
        write_atomic(self.path, json.dumps(self.contents).encode())

    def check(self) -> None:
        """Does nothing: the thread that renews it exits if it is lost."""

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self.stopped.wait(self.duration / 8):
            try:
                if not self._is_owner():
                    self._exit(f"was taken over: {_held(self.path)}")
                self._write()
                renewed = time.monotonic()
            except OSError as error:
                if time.monotonic() - renewed > self.duration / 2:
                    self._exit(f"cannot be renewed ({error.strerror})")

    def _exit(self, reason: str) -> NoReturn:
        print_line(f"error: {self.path} {reason}")
        os._exit(EXIT_RESTART)

    def release(self) -> None:
        self.stopped.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)


def is_being_written(folder: Path) -> bool:
    """Whether a process has locked a folder; one of another machine may have died."""
    holder = _read_holder(folder / LOCK) or _read_holder(folder / LEASE)
    try:
        if holder and holder["host"] == socket.gethostname():
            os.kill(holder["pid"], 0)  # no signal: only whether it exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(holder)


def acquire_lock(folder: Path) -> Lock | Lease:
    """Makes this process the folder's only writer; ConfigError if another one is."""
    if _get_filesystem(folder).startswith("fuse"):
        return Lease(folder)
    try:
        return Lock(folder)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return Lease(folder)


def _get_filesystem(folder: Path) -> str:
    """The type of the file system of a folder; empty if it is unknown."""
    if not MOUNTS.exists():
        return ""
    mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    parents = {f"{path}" for path in (folder.resolve(), *folder.resolve().parents)}
    found = [(len(point), kind) for point, kind in mounts if point in parents]
    return max(found, default=(0, ""))[1]


def _describe_self() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _read_holder(path: Path) -> dict[str, Any]:
    """The contents of a lock file; empty while it is being written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _held(path: Path) -> ConfigError:
    """Says which process holds a lock, and what to do."""
    holder = {"pid": "?", "host": "?", "since": "?", **_read_holder(path)}
    return ConfigError(
        f"{path.parent} is being written by process {holder['pid']} of {holder['host']}"
        f" since {holder['since']}: wait for it or stop it, or name another folder with"
        " --run."
    )
