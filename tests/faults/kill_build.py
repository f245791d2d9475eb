"""Builds stores in processes that are killed.

Usage: `kill_build.py CONFIG FOLDER MODE [BINDING ...]`. `random` kills 20 of them at
random times; `renames` kills one before and one after each rename of a file. Prints the
number of kills and stores, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lmx.config.resolve import load
from lmx.data.store.build import BuildTokenStore

KILLS = 20


def start(build: BuildTokenStore, folder: Path, setup: Callable[[], object]) -> int:
    """Starts a process that calls `setup` and builds the store. Returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        setup()
        build.write(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_killed(process: int) -> bool:
    """Waits for the process. Returns whether it was killed before it finished."""
    status = os.waitpid(process, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def kill_at_random(build: BuildTokenStore, root: Path) -> dict[str, int]:
    """Builds stores, killed at random, until enough kills interrupted a process."""
    started = time.monotonic()
    wait_killed(start(build, root / "uninterrupted", int))
    seconds = time.monotonic() - started
    rng, kills, stores = random.Random(5), 0, 0
    killed = True
    while kills < KILLS or killed:
        process = start(build, root / f"{stores}", int)
        if kills < KILLS:
            time.sleep(rng.uniform(0, seconds / 4))
            os.kill(process, signal.SIGKILL)
        killed = wait_killed(process)
        kills += killed
        stores += not killed
    return {"kills": kills, "stores": stores}


def kill_self_at_rename(count: int) -> None:
    """Makes this process kill itself at a rename: 0 is before the first, 1 after it."""
    rename = os.replace
    done = 0

    def replace(*paths: Path) -> None:
        nonlocal done
        if 2 * done == count:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
        if 2 * done + 1 == count:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    os.replace = replace


def kill_at_renames(build: BuildTokenStore, root: Path) -> dict[str, int]:
    """Builds a store for each side of each rename, and kills its process there."""
    stores = 0
    while wait_killed(
        start(build, root / f"{stores}", partial(kill_self_at_rename, stores))
    ):
        assert not wait_killed(start(build, root / f"{stores}", int))
        stores += 1
    return {"kills": stores, "stores": stores + 1}


def main() -> None:
    """Kills in the given mode."""
    path, root, mode, *overrides = sys.argv[1:]
    build = load([path], overrides, root=BuildTokenStore).build()
    modes = {"random": kill_at_random, "renames": kill_at_renames}
    print(json.dumps(modes[mode](build, Path(root))))


if __name__ == "__main__":
    main()
