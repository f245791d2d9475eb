"""The cost of checkpoints in a training run: `python benchmarks/save.py [FOLDER]`.

Saves 1.2 GB of state on the disk of FOLDER, and measures:

- how long a save blocks training, compared with a copy of the state to the host;
- the CPU time of a save;
- the slowdown of a run whose interval between saves is 20 times the time of a save,
  verification included;
- the time to restore, compared with reading the same files with tensorstore, from
  memory and from the disk, interleaved.

Takes a quarter of an hour.
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
INTERVAL = 20  # between saves, in times of a save
ROUNDS = 5
RUNS = 3  # with saves, and as many without


def make_state(seed: int) -> dict[str, Any]:
    """Returns random arrays, which do not compress, and the matrix of the steps."""
    keys = jax.random.split(jax.random.key(seed), ARRAYS)
    arrays = {f"w{n}": jax.random.normal(key, (SIZE,)) for n, key in enumerate(keys)}
    return {**arrays, "x": jnp.eye(WIDTH), "step": jnp.int32(0)}


def _multiply(x: jax.Array) -> jax.Array:
    def product(_: Any, y: jax.Array) -> jax.Array:
        return y @ x / WIDTH

    return jax.lax.fori_loop(0, PRODUCTS, product, x)


def _step(state: dict[str, Any]) -> dict[str, Any]:
    """Reads and writes every array once, and multiplies some matrices."""
    scale = 1 + 0 * _multiply(state["x"])[0, 0]
    names = [name for name in state if name.startswith("w")]
    scaled = {name: state[name] * scale for name in names}
    return {**state, **scaled, "step": state["step"] + 1}


step = jax.jit(_step, donate_argnums=0)


def measure_seconds(function: Callable[[], Any]) -> float:
    """Returns the seconds until the result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def print_row(name: str, values: list[float]) -> None:
    """Prints median, minimum and maximum."""
    middle, least, most = statistics.median(values), min(values), max(values)
    print(f"{name:49} {middle:9.3f} {least:9.3f} {most:9.3f}", flush=True)


def measure_saves(state: Any, checkpoints: CheckpointManager) -> tuple[Any, float]:
    """Prints the cost of a save; returns the state and seconds to verification."""
    copies, calls, blocked = [], [], []
    committed, commit_cpu, verified, verify_cpu = [], [], [], []
    size = sum(leaf.nbytes for leaf in state.values()) / 1e9
    for number in range(ROUNDS):
        touch_memory()
        copies.append(
            measure_seconds(lambda state=state: [np.array(x) for x in state.values()])
        )
        plain = []
        for _ in range(3):
            start = time.perf_counter()
            state = jax.block_until_ready(step(state))
            plain.append(time.perf_counter() - start)
        # Like a save, keeps the arrays, so that the step cannot reuse their memory.
        parts = get_local_parts(checkpoints.buffers.copy(flatten_by_path(state)))
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        delay = time.perf_counter() - start - statistics.median(plain)
        del parts
        start, cpu = time.perf_counter(), time.process_time()
        checkpoints.save(number, state)
        calls.append(time.perf_counter() - start)
        blocked.append(calls[-1] + delay)
        while number not in checkpoints.directory.list_steps():
            time.sleep(0.005)
        committed.append(time.perf_counter() - start)
        commit_cpu.append((time.process_time() - cpu) / size)
        checkpoints.wait()
        verified.append(time.perf_counter() - start)
        verify_cpu.append((time.process_time() - cpu) / size)
    print_row("copy of the state, s", copies)
    print_row("call of save, s", calls)
    print_row("call of save and delay of the next step, s", blocked)
    excess = [b - c for b, c in zip(blocked, copies, strict=True)]
    print_row("that minus the copy, s (at most 0.050)", excess)
    print_row("save to commit, s", committed)
    print_row("save to verification, s", verified)
    print_row("save to commit, CPU s/GB (at most 6)", commit_cpu)
    print_row("save to verification, CPU s/GB", verify_cpu)
    return state, statistics.median(verified)


def measure_slowdown(
    state: Any, checkpoints: CheckpointManager, save_seconds: float
) -> None:
    """Prints the time of a run with saves over that of one without."""
    plain = []
    for _ in range(5):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        plain.append(time.perf_counter() - start)
    count = max(2, round(INTERVAL * save_seconds / statistics.median(plain)))
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * RUNS):
        saves = number % 2 == 1
        touch_memory()
        start = time.perf_counter()
        if saves:
            checkpoints.save(200 + number, state)
        for _ in range(count):
            state = jax.block_until_ready(step(state))
        if saves:
            checkpoints.wait()
        times[saves].append(time.perf_counter() - start)
    print(f"{count} steps per save, of {statistics.median(plain):.3f} s each")
    ratio = [a / b for a, b in zip(times[True], times[False], strict=True)]
    print_row("time with saves over without (at most 1.05)", ratio)


def measure_restore(state: Any, checkpoints: CheckpointManager) -> None:
    """Prints the time to restore, and to read the same files with tensorstore."""
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    newest = checkpoints.list_steps()[-1]

    def read_files() -> None:
        reader = CheckpointReader(checkpoints.directory.step_path(newest))
        with ThreadPoolExecutor(PARALLEL_TENSORS) as pool:
            list(pool.map(lambda name: reader.open_tensor(name).read().result(), state))

    for where in ("memory", "disk"):
        restores, reads = [], []
        for _ in range(ROUNDS):
            touch_memory()
            for function, times in (
                (read_files, reads),
                (lambda: checkpoints.restore(newest, like), restores),
            ):
                if where == "disk":
                    drop_from_cache(checkpoints.directory.step_path(newest))
                times.append(measure_seconds(function))
        print_row(f"tensorstore, from {where}, s", reads)
        print_row(f"restore and verify, from {where}, s", restores)
        ratio = [a / b for a, b in zip(reads, restores, strict=True)]
        print_row(f"relative speed of restore, {where} (at least 0.70)", ratio)


def drop_from_cache(path: Path) -> None:
    """Drops the files below from the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def touch_memory() -> None:
    """Touches most of the free memory.

    The host of a virtual machine may have taken it, and returns it page by page.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    np.ones(free // 10 * 8, np.uint8)


def main() -> None:
    """Prints one table."""
    root = sys.argv[1] if len(sys.argv) > 1 else None
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{platform.machine()}, Python {platform.python_version()}, {load}")
    print(f"{'':49} {'median':>9} {'min':>9} {'max':>9}")
    with tempfile.TemporaryDirectory(dir=root) as folder:
        checkpoints = CheckpointManager(Path(folder) / "checkpoints", keep=1)
        state, save_seconds = measure_saves(step(make_state(0)), checkpoints)
        measure_restore(state, checkpoints)
        measure_slowdown(state, checkpoints, save_seconds)


if __name__ == "__main__":
    main()
