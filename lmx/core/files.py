"""What is made once and kept: whole or not there, however many make it at a time."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lmx.config.registry import ConfigError


def get_cache_dir(name: str) -> Path:
    """That folder of the cache, below `LMX_CACHE`, or ~/.cache/lmx if it is unset."""
    root = Path(os.environ.get("LMX_CACHE") or "~/.cache/lmx").expanduser()
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot keep anything in {root} ({error.strerror}): set LMX_CACHE to a"
            " folder that can be written."
        ) from None
    return root / name


def write_atomic(path: Path, content: bytes) -> None:
    """Writes the file such that readers see all of it or what was there before."""
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is written and on disk, and not before."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with made.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)


def create_dir_once(path: Path, fill: Callable[[Path], None]) -> None:
    """Puts the folder that `read_into` makes at `path`, unless another was quicker."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as made:
        fill(Path(made, "new"))
        try:
            os.rename(Path(made, "new"), path)
        except OSError:
            if not path.is_dir():
                raise


def create_dir(path: Path, fill: Callable[[Path], None], advice: str) -> None:
    """Puts a folder where none is, filled before anyone sees it.

    Where that fails, nothing is left of it. A folder that holds something is refused
    with the advice.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is there and {advice}")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        fresh.mkdir(parents=True)
        fill(fresh)
        fresh.rename(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        for parent in absent:
            with contextlib.suppress(OSError):  # never made, or no longer empty
                parent.rmdir()
        raise


def remove_dir(path: Path) -> None:
    """Takes the folder away at once; who has its files open may read on."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".old-") as away:
        try:
            os.rename(path, Path(away, "old"))
        except FileNotFoundError:
            return
        shutil.rmtree(Path(away, "old"))
