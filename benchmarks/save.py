"""Cost of checkpoints in a training run: `python benchmarks/save.py [FOLDER]`.

Saves 1.2 GB of state on the disk of FOLDER. Measures how long a save blocks training,
compared with copying the state to the host; the CPU time of a save; the slowdown of a
run that saves every 20 write times, where a write ends when the checkpoint is verified;
and restoring, compared with reading the same files with NumPy, from memory and from
disk. Measurements are interleaved. It takes a quarter of an hour.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.train.checkpoint.digest import flatten_by_path
from lmx.train.checkpoint.manager import CheckpointManager

ARRAYS, SIZE = 12, 25_000_000  # float32: 1.2 GB
WIDTH, PRODUCTS = 1024, 24  # of the matrices multiplied in a step
SAVE_INTERVAL = 20  # write times between saves
ROUNDS = 5
RUNS = 3  # with saves, and the same number without


def make_state(seed: int) -> dict[str, Any]:
    """Returns incompressible arrays, and the values that a step changes."""
    keys = jax.random.split(jax.random.key(seed), ARRAYS)
    arrays = {f"w{n}": jax.random.normal(key, (SIZE,)) for n, key in enumerate(keys)}
    return {**arrays, "x": jnp.eye(WIDTH), "step": jnp.int32(0)}


@jax.jit
def _multiply(x: jax.Array) -> jax.Array:
    def product(_: Any, y: jax.Array) -> jax.Array:
        return y @ x / WIDTH

    return jax.lax.fori_loop(0, PRODUCTS, product, x)


def _step(state: dict[str, Any]) -> dict[str, Any]:
    """Reads and writes every number once, and multiplies some matrices."""
    scale = 1 + 0 * _multiply(state["x"])[0, 0]
    names = [name for name in state if name.startswith("w")]
    scaled = {name: state[name] * scale for name in names}
    return {**state, **scaled, "step": state["step"] + 1}


step = jax.jit(_step, donate_argnums=0)


def measure(work: Callable[[], Any]) -> float:
    """Returns the wall time in seconds."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def print_row(name: str, values: list[float], digits: int = 3) -> None:
    """Prints one line: median and range."""
    median, low, high = statistics.median(values), min(values), max(values)
    print(
        f"{name:44} {median:9.{digits}f} {low:9.{digits}f} {high:9.{digits}f}",
        flush=True,
    )


def measure_saves(state: Any, checkpoints: CheckpointManager) -> tuple[Any, float]:
    """Measures single saves. Returns the state, and the seconds until verification."""
    blocked, calls, copies, used, verified = [], [], [], [], []
    size = sum(leaf.nbytes for leaf in state.values()) / 1e9
    for number in range(ROUNDS):
        touch_free_memory()
        copies.append(
            measure(lambda state=state: [np.array(x) for x in state.values()])
        )
        plain = []
        for _ in range(3):
            start = time.perf_counter()
            state = jax.block_until_ready(step(state))
            plain.append(time.perf_counter() - start)
        kept = checkpoints.buffers.copy(flatten_by_path(state))  # as a save does
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        late = time.perf_counter() - start - statistics.median(plain)
        del kept
        start, cpu = time.perf_counter(), time.process_time()
        checkpoints.save(number, state)
        blocked.append(time.perf_counter() - start + late)
        calls.append(blocked[-1] - late)
        checkpoints.wait()
        verified.append(time.perf_counter() - start)
        used.append((time.process_time() - cpu) / size)
    print_row("copy of the state, s", copies)
    print_row("blocked by the save call, s", calls)
    print_row("the same, with the delay of the next step, s", blocked)
    excess = [b - c for b, c in zip(blocked, copies, strict=True)]
    print_row("the same, without the copy, s (at most 0.050)", excess)
    print_row("save to commit, read back, s", verified)
    print_row("save to commit, read back, CPU s/GB (at most 6)", used)
    return state, statistics.median(verified)


def measure_slowdown(state: Any, checkpoints: CheckpointManager, write: float) -> None:
    """Measures the slowdown of a run that saves every `SAVE_INTERVAL` write times."""
    plain = []
    for _ in range(5):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        plain.append(time.perf_counter() - start)
    count = max(2, round(SAVE_INTERVAL * write / statistics.median(plain)))
    walls: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * RUNS):
        saves = number % 2 == 1
        touch_free_memory()
        start = time.perf_counter()
        if saves:
            checkpoints.save(200 + number, state)
        for _ in range(count):
            state = jax.block_until_ready(step(state))
        if saves:
            checkpoints.wait()
        walls[saves].append(time.perf_counter() - start)
    print(f"{count} steps per save, of {statistics.median(plain):.3f} s")
    ratio = [a / b for a, b in zip(walls[True], walls[False], strict=True)]
    print_row("time with a save over without (at most 1.05)", ratio)


def measure_restore(state: Any, checkpoints: CheckpointManager) -> None:
    """Measures restoring, and reading the same files with NumPy."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    newest = checkpoints.list_steps()[-1]

    def read_raw() -> None:
        for file in checkpoints.directory.step_path(newest).glob("*.bin"):
            np.fromfile(file, np.uint8)

    for where in ("memory", "disk"):
        own, reads = [], []
        for _ in range(ROUNDS):
            touch_free_memory()
            for work, walls in (
                (read_raw, reads),
                (lambda: checkpoints.restore(newest, abstract), own),
            ):
                if where == "disk":
                    drop_page_cache(checkpoints.directory.step_path(newest))
                walls.append(measure(work))
        print_row(f"numpy.fromfile, from {where}, s", reads)
        print_row(f"restore and verify, from {where}, s", own)
        ratio = [a / b for a, b in zip(reads, own, strict=True)]
        print_row(f"relative speed of restoring, from {where} (at least 0.70)", ratio)


def drop_page_cache(path: Path) -> None:
    """Makes the kernel read the files in a folder from disk the next time."""
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def touch_free_memory() -> None:
    """Touches most of the free memory, which the host of a virtual machine may reclaim.

    Reclaimed memory is slow to allocate, page by page.
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
        state, write = measure_saves(step(make_state(0)), checkpoints)
        measure_restore(state, checkpoints)
        measure_slowdown(state, checkpoints, write)


if __name__ == "__main__":
    main()
