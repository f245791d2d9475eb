"""Memory and time of loading Hugging Face weights: `python benchmarks/import_hf.py`.

A random Llama with a billion parameters in bfloat16 is imported into a run by one
process, and loaded by four processes that share it. Memory is the peak of anonymous
memory (RssAnon) over that of the idle process, divided by the size of the weights that
the process holds at the end.
"""

import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

PRESET = "llama32_1b"
POLL_SECONDS = 0.005
READY = "ready"

# Each waits for a line, then loads the weights and prints the bytes held and read.
IMPORT = """
import sys
from pathlib import Path
import jax
from lmx.train.checkpoint.import_hf import import_hf
jax.devices()
print("ready", flush=True)
input()
trained = import_hf(Path(sys.argv[1]), Path(sys.argv[2]))
print(sum(leaf.nbytes for leaf in jax.tree.leaves(trained.params)), 0)
"""
SHARE = """
import sys
from pathlib import Path
import jax
from lmx.core.sharding import Mesh
from lmx.models.hf.api import HFCheckpoint, load_model
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 4, int(sys.argv[3]))
jax.devices()
print("ready", flush=True)
input()
source = HFCheckpoint(Path(sys.argv[1]))
trained = load_model(source, mesh=Mesh(fsdp=2, tensor=2))
leaves = jax.tree.leaves(trained.params)
has = sum(share.data.nbytes for leaf in leaves for share in leaf.addressable_shards)
print(has, source.weights.bytes_read)
"""


def write_model(folder: Path) -> int:
    """Writes the model. Returns its size in bytes."""
    from flax import nnx

    from lmx.models.families.llama import FAMILY
    from lmx.models.hf.api import CONFIG, init_abstract, write_json
    from lmx.models.hf.safetensors import TensorInfo, write_tensors
    from lmx.models.hf.weights import group_by_tensor, map_tensors
    from lmx.models.params import flatten_params

    model = init_abstract(FAMILY.to_config(FAMILY.presets[PRESET], PRESET))
    shapes = {
        name: leaf.shape for name, leaf in flatten_params(nnx.state(model)).items()
    }
    groups = group_by_tensor(map_tensors(FAMILY.tensor_maps, shapes, model))
    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = [
        TensorInfo(name, dtype, first.shape) for name, (first, *_) in groups.items()
    ]
    random = np.random.default_rng(0)

    def value(tensor: TensorInfo) -> np.ndarray:
        return random.standard_normal(tensor.shape, np.float32).astype(dtype)

    write_tensors(folder, tensors, value)
    write_json(folder / CONFIG, {**FAMILY.presets[PRESET], "model_type": "llama"})
    return sum(tensor.bytes for tensor in tensors)


def read_anonymous(process: int) -> int:
    """Returns the anonymous memory of a process in bytes, or 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def watch(commands: Sequence[Sequence[str]]) -> list[tuple[int, int, int, float]]:
    """Returns memory over idle, bytes held, bytes read and seconds of each process."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process in running:
        assert process.stdout and process.stdout.readline().strip() == READY
    idle = [read_anonymous(process.pid) for process in running]
    peak = list(idle)
    start = time.monotonic()
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    while any(process.poll() is None for process in running):
        now = [read_anonymous(process.pid) for process in running]
        peak = list(map(max, peak, now))
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - start
    results = []
    for process, low, high in zip(running, idle, peak, strict=True):
        assert process.stdout and process.returncode == 0
        held, read = map(int, process.stdout.readline().split())
        results.append((high - low, held, read, seconds))
    return results


def main() -> None:
    """Prints a line per process."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where, "llama")
        folder.mkdir()
        size = write_model(folder)
        print(f"{platform.machine()}, {PRESET}, random, {size / 1e9:.2f} GB of weights")
        print(
            f"{'process':12} {'held':>8} {'peak':>8} {'ratio':>6} {'read':>8} {'s':>6}"
        )
        ((peak, held, _, seconds),) = watch([[IMPORT, f"{folder}", f"{where}/run"]])
        print(
            f"{'import hf':12} {held / 1e9:8.2f} {peak / 1e9:8.2f} {peak / held:6.2f}"
            f" {'':8} {seconds:6.0f}"
        )
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        four = [[SHARE, f"{folder}", address, f"{n}"] for n in range(4)]
        for number, (peak, held, read, seconds) in enumerate(watch(four)):
            print(
                f"{f'load {number} of 4':12} {held / 1e9:8.2f} {peak / 1e9:8.2f}"
                f" {peak / held:6.2f} {read / 1e9:8.2f} {seconds:6.0f}"
            )


if __name__ == "__main__":
    main()
