"""What saving costs a training run: `python benchmarks/save.py [FOLDER]`.

1.2 GB of state, on the disk of FOLDER. How long a save keeps the training waiting, next
to copying the state off the device; the CPU time of a save; how much slower a run is
that saves every 20 write-times, where writing lasts until the state counts: until it
was read again; and restoring next to reading the same files with tensorstore, from
memory and from the disk, all of it in turn. It takes a quarter of an hour.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.train.checkpoint.digest import flatten_by_path, get_local_parts
from lmx.train.checkpoint.manager import CheckpointManager
from lmx.train.checkpoint.reader import PARALLEL_TENSORS, CheckpointReader

ARRAYS, SIZE = 12, 25_000_000  # float32: 1.2 GB
WIDTH, PRODUCTS = 1024, 24  # of matrices that a step multiplies
EVERY = 20  # write-times from save to save
ROUNDS = 5
RUNS = 3  # with saves, and as many without


def state_of(seed: int) -> dict[str, Any]:
    """Numbers that no disk can make small, and what steps work on."""
    keys = jax.random.split(jax.random.key(seed), ARRAYS)
    arrays = {f"w{n}": jax.random.normal(key, (SIZE,)) for n, key in enumerate(keys)}
    return {**arrays, "x": jnp.eye(WIDTH), "step": jnp.int32(0)}


@jax.jit
def _worked(x: jax.Array) -> jax.Array:
    def product(_: Any, y: jax.Array) -> jax.Array:
        return y @ x / WIDTH

    return jax.lax.fori_loop(0, PRODUCTS, product, x)


def _step(state: dict[str, Any]) -> dict[str, Any]:
    """Reads and writes every number once, and multiplies some matrices."""
    scale = 1 + 0 * _worked(state["x"])[0, 0]
    names = [name for name in state if name.startswith("w")]
    moved = {name: state[name] * scale for name in names}
    return {**state, **moved, "step": state["step"] + 1}


step = jax.jit(_step, donate_argnums=0)


def seconds(work: Callable[[], Any]) -> float:
    """On the wall."""
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def shown(name: str, values: list[float], digits: int = 3) -> None:
    """One line: median and spread."""
    middle, least, most = statistics.median(values), min(values), max(values)
    print(
        f"{name:44} {middle:9.{digits}f} {least:9.{digits}f} {most:9.{digits}f}",
        flush=True,
    )


def blocking(state: Any, checkpoints: CheckpointManager) -> tuple[Any, float]:
    """What one save costs, with nothing beside it; seconds until it counts."""
    blocked, calls, copies, used, walls, written = [], [], [], [], [], []
    trusted = []
    size = sum(leaf.nbytes for leaf in state.values()) / 1e9
    for number in range(ROUNDS):
        warm()
        copies.append(
            seconds(lambda state=state: [np.array(x) for x in state.values()])
        )
        plain = []
        for _ in range(3):
            begun = time.perf_counter()
            state = jax.block_until_ready(step(state))
            plain.append(time.perf_counter() - begun)
        kept = get_local_parts(
            checkpoints.buffers.copy(flatten_by_path(state))
        )  # as a save keeps it
        begun = time.perf_counter()
        state = jax.block_until_ready(step(state))
        late = time.perf_counter() - begun - statistics.median(plain)
        del kept
        begun, cpu = time.perf_counter(), time.process_time()
        checkpoints.save(number, state)
        blocked.append(time.perf_counter() - begun + late)
        calls.append(blocked[-1] - late)
        while number not in checkpoints.directory.list_steps():
            time.sleep(0.005)
        walls.append(time.perf_counter() - begun)
        written.append((time.process_time() - cpu) / size)
        checkpoints.wait()
        trusted.append(time.perf_counter() - begun)
        used.append((time.process_time() - cpu) / size)
    shown("copy of the state, s", copies)
    shown("the call that saves, s", calls)
    shown("the same, and what the next step is late, s", blocked)
    excess = [b - c for b, c in zip(blocked, copies, strict=True)]
    shown("that less the copy, s (at most 0.050)", excess)
    shown("save to commit, s", walls)
    shown("the same, and read again, s", trusted)
    shown("save to commit, CPU s/GB (at most 6)", written)
    shown("the same, and read again, CPU s/GB", used)
    return state, statistics.median(trusted)


def slowing(state: Any, checkpoints: CheckpointManager, write: float) -> None:
    """How much slower a run is that saves every so many write-times."""
    plain = []
    for _ in range(5):
        begun = time.perf_counter()
        state = jax.block_until_ready(step(state))
        plain.append(time.perf_counter() - begun)
    count = max(2, round(EVERY * write / statistics.median(plain)))
    walls: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * RUNS):
        saves = number % 2 == 1
        warm()
        begun = time.perf_counter()
        if saves:
            checkpoints.save(200 + number, state)
        for _ in range(count):
            state = jax.block_until_ready(step(state))
        if saves:
            checkpoints.wait()
        walls[saves].append(time.perf_counter() - begun)
    print(f"{count} steps a save, of {statistics.median(plain):.3f} s")
    ratio = [a / b for a, b in zip(walls[True], walls[False], strict=True)]
    shown("with a save over without (at most 1.05)", ratio)


def restoring(state: Any, checkpoints: CheckpointManager) -> None:
    """Restoring, and reading the same files with tensorstore."""
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    newest = checkpoints.list_steps()[-1]

    def raw() -> None:
        reader = CheckpointReader(checkpoints.directory.step_path(newest))
        with ThreadPoolExecutor(PARALLEL_TENSORS) as pool:
            list(pool.map(lambda name: reader.open_tensor(name).read().result(), state))

    for where in ("memory", "disk"):
        own, reads = [], []
        for _ in range(ROUNDS):
            warm()
            for work, walls in (
                (raw, reads),
                (lambda: checkpoints.restore(newest, like), own),
            ):
                if where == "disk":
                    forget(checkpoints.directory.step_path(newest))
                walls.append(seconds(work))
        shown(f"tensorstore, from {where}, s", reads)
        shown(f"restore and check, from {where}, s", own)
        ratio = [a / b for a, b in zip(reads, own, strict=True)]
        shown(f"speed of restoring, from {where} (at least 0.70)", ratio)


def forget(path: Path) -> None:
    """Has the kernel read the files below from their disk the next time."""
    for file in path.rglob("*"):
        if file.is_file():
            opened = os.open(file, os.O_RDONLY)
            os.fsync(opened)
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(opened)


def warm() -> None:
    """Touches most of the free memory: a virtual machine may not really have it.

    Its host may take what is not used, and only gives it back page by page.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    np.ones(free // 10 * 8, np.uint8)


def main() -> None:
    """Prints one table."""
    root = sys.argv[1] if len(sys.argv) > 1 else None
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{platform.machine()}, Python {platform.python_version()}, {load}")
    print(f"{'':44} {'median':>9} {'min':>9} {'max':>9}")
    with tempfile.TemporaryDirectory(dir=root) as folder:
        checkpoints = CheckpointManager(Path(folder) / "checkpoints", keep=1)
        state, write = blocking(step(state_of(0)), checkpoints)
        restoring(state, checkpoints)
        slowing(state, checkpoints, write)


if __name__ == "__main__":
    main()
