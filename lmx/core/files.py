"""Atomic creation of files and folders, and the cache folder."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lmx.config.registry import ConfigError, require

MOUNT_CONTENT = "lost+found"  # what a new file system may have
REMOVED = ".lmx-removed-"  # begins the name of a folder that is being removed


def get_cache_dir(name: str) -> Path:
    """A folder of the cache, in `LMX_CACHE`, or in ~/.cache/lmx if that is unset."""
    root = Path(os.environ.get("LMX_CACHE") or "~/.cache/lmx").expanduser()
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the cache {root} ({error.strerror}): set LMX_CACHE to a"
            " writable folder."
        ) from None
    return root / name


def get_cache_path(name: str, *identity: object) -> Path:
    """The path in a folder of the cache for what that identity, as JSON, determines."""
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return get_cache_dir(name) / digest[:32]


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file; readers see the old content or the new one."""
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def create_dir_once(path: Path, fill: Callable[[Path], None]) -> None:
    """Creates a folder by `fill`, unless another process is faster."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as parent:
        fill(Path(parent, "new"))
        try:
            os.rename(Path(parent, "new"), path)
        except OSError:
            if not path.is_dir():
                raise


@contextlib.contextmanager
def create_dir(path: Path, advice: str) -> Iterator[Path]:
    """A new folder, which gets its name if the body of the `with` succeeds.

    Leaves nothing if that fails. Refuses a folder that is not empty, with the advice. A
    symbolic link is followed; the files are moved into a mount point at the end.
    """
    path = Path(os.path.realpath(path))
    content = {item.name for item in path.iterdir()} if path.is_dir() else set()
    is_new = path.is_dir() or not path.exists()
    require(is_new and content <= {MOUNT_CONTENT}, f"{path} exists and {advice}")
    is_mount = os.path.ismount(path)
    parent = path if is_mount else path.parent
    temporary = parent / f".{path.name}.{os.getpid()}"
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if is_mount:
            for item in temporary.iterdir():
                item.rename(path / item.name)
            temporary.rmdir()
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in absent:
            with contextlib.suppress(OSError):  # not created, or not empty
                parent.rmdir()
        raise


def remove_dir(path: Path) -> None:
    """Removes a folder at once; open files stay readable."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=REMOVED) as parent:
        try:
            os.rename(path, Path(parent, "old"))
        except FileNotFoundError:
            return
        shutil.rmtree(Path(parent, "old"))
