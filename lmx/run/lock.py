"""One process at a time may write to the folder of a run."""

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from lmx.config.registry import ConfigError
from lmx.core.console import print_line
from lmx.core.files import write_atomic
from lmx.core.rendezvous import EXIT_RESTART

LOCK, LEASE = "lock", "lease"  # files of a run's folder, there while it is written to
LEASE_SECONDS = 40.0  # seconds without a sign of life after which a lease is over
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # there are no locks here
MOUNTS = Path("/proc/self/mounts")


class Lock:
    """A lock of the kernel on a file, which ends with the process that holds it."""

    def __init__(self, folder: Path):
        """Takes it: ConfigError if another has it, OSError if files have no locks."""
        self.path = folder / LOCK
        while True:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self.file), os.stat(self.path)):
                    break
            except FileNotFoundError:  # whoever had it has just taken it away
                pass
            except BlockingIOError:
                self._refuse()
            except OSError:
                os.close(self.file)
                raise
            os.close(self.file)
        os.ftruncate(self.file, 0)
        os.write(self.file, json.dumps(_describe_self()).encode())

    def _refuse(self) -> NoReturn:
        os.close(self.file)
        raise ConfigError(_describe_holder(self.path))

    def release(self) -> None:
        """Lets another have it."""
        self.path.unlink(missing_ok=True)
        os.close(self.file)


class Lease:
    """A file that says who writes, and shows ever again that it still does.

    For folders whose files have no locks, or locks that other machines do not see, as
    those of a bucket that is mounted. No two clocks are compared: who wants the folder
    watches the file for `term` seconds and takes it if nothing changes. Whoever finds
    that it was taken, or cannot show a sign of life for so long, ends with 75.
    """

    def __init__(self, folder: Path, term: float = LEASE_SECONDS):
        """Takes it, which may last `term`; ConfigError if another has it."""
        self.path, self.term = folder / LEASE, term
        self.contents = {**_describe_self(), "token": secrets.token_hex(8), "sign": 0}
        self._acquire()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._renew_until_stopped, daemon=True)
        self.thread.start()

    def _acquire(self) -> None:
        try:
            with self.path.open("x") as file:
                file.write(json.dumps(self.contents))
            return
        except FileExistsError:
            print_line(
                f"{_describe_holder(self.path)}\nwaiting {self.term:.0f} s for a sign of life"
            )
        seen, late = self._read(), time.monotonic() + self.term
        while time.monotonic() < late:
            time.sleep(self.term / 40)
            if self._read() != seen:
                raise ConfigError(_describe_holder(self.path))
        self._write()
        time.sleep(self.term / 20)  # another may have waited as long as this one
        if not self._is_owner():
            raise ConfigError(_describe_holder(self.path))

    def _read(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _is_owner(self) -> bool:
        return _read_holder(self.path).get("token") == self.contents["token"]

    def _write(self) -> None:
        self.contents["sign"] += 1
        write_atomic(self.path, json.dumps(self.contents).encode())

    def _renew_until_stopped(self) -> None:
        shown = time.monotonic()
        while not self.stopped.wait(self.term / 8):
            try:
                if not self._is_owner():
                    self._abort(f"was taken over: {_describe_holder(self.path)}")
                self._write()
                shown = time.monotonic()
            except OSError as error:
                if time.monotonic() - shown > self.term / 2:
                    self._abort(f"cannot be held on to ({error.strerror})")

    def _abort(self, why: str) -> NoReturn:
        print(f"error: {self.path.parent} {why}", file=sys.stderr, flush=True)
        os._exit(EXIT_RESTART)

    def release(self) -> None:
        """Lets another have it."""
        self.stopped.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)


def acquire_lock(folder: Path) -> Lock | Lease:
    """Makes this process the only one that writes to the folder, until `release`.

    Raises ConfigError, naming the holder, if another one writes.
    """
    if _get_filesystem(folder).startswith("fuse"):
        return Lease(folder)
    try:
        return Lock(folder)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return Lease(folder)


def _get_filesystem(folder: Path) -> str:
    """The kind of the file system that a folder is on; nothing if that is not told."""
    if not MOUNTS.exists():
        return ""
    mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    above = {f"{path}" for path in (folder.resolve(), *folder.resolve().parents)}
    there = [(len(place), kind) for place, kind in mounts if place in above]
    return max(there, default=(0, ""))[1]


def _describe_self() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _read_holder(path: Path) -> dict[str, Any]:
    """What the file says of who holds it; nothing if it is just being written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _describe_holder(path: Path) -> str:
    """Who holds it, and what to do about it."""
    who = {"pid": "?", "host": "?", "since": "?", **_read_holder(path)}
    return (
        f"{path.parent} is being written by process {who['pid']} of {who['host']} since"
        f" {who['since']}: wait for it or stop it, or name another folder with --run."
    )
