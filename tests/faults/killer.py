"""Builds a store in processes that die: `killer.py PAGE FOLDER HOW [BINDING ...]`.

`moments` kills 20 of them at random; `renames` has one die before and one after each
file gets its name. Prints what it came to, as JSON.
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


def started(build: BuildTokenStore, folder: Path, first: Callable[[], object]) -> int:
    """A process that does `first`, then builds the store in the folder."""
    process = os.fork()
    if process:
        return process
    try:
        first()
        build.write(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(process: int) -> bool:
    """Whether the process was killed; it may also have come to its end."""
    status = os.waitpid(process, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def moments(build: BuildTokenStore, root: Path) -> dict[str, int]:
    """Builds stores, killed at random, until so many kills met a process at work."""
    began = time.monotonic()
    ended(started(build, root / "whole", int))
    seconds = time.monotonic() - began
    chance, kills, stores = random.Random(5), 0, 0
    killed = True
    while kills < KILLS or killed:
        process = started(build, root / f"{stores}", int)
        if kills < KILLS:
            time.sleep(chance.uniform(0, seconds / 4))
            os.kill(process, signal.SIGKILL)
        killed = ended(process)
        kills += killed
        stores += not killed
    return {"kills": kills, "stores": stores}


def dying(count: int) -> None:
    """Has this process die at the side of a rename: 0 before the first, 1 after it."""
    rename = os.replace
    seen = 0

    def replace(*paths: Path) -> None:
        nonlocal seen
        if 2 * seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
        if 2 * seen + 1 == count:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    os.replace = replace


def renames(build: BuildTokenStore, root: Path) -> dict[str, int]:
    """Builds a store for each side of each rename, where its first process dies."""
    stores = 0
    while ended(started(build, root / f"{stores}", partial(dying, stores))):
        assert not ended(started(build, root / f"{stores}", int))
        stores += 1
    return {"kills": stores, "stores": stores + 1}


def main() -> None:
    """Kills as the words say."""
    page, root, how, *overrides = sys.argv[1:]
    build = load([page], overrides, root=BuildTokenStore).build()
    print(json.dumps({"moments": moments, "renames": renames}[how](build, Path(root))))


if __name__ == "__main__":
    main()
