"""What holding fewer logits saves, and costs: `python benchmarks/loss.py`.

The gradient of a small decoder with a large vocabulary, its loss taken whole and in
chunks: bytes that the compiled program needs beside its inputs and outputs, and
milliseconds, all of them in turn.
"""

import platform
import statistics
import time
from functools import partial

import jax
from flax import nnx

import lmx
from lmx.train.step import compute_gradients

ROUNDS = 3
PAGE = "experiments/quickstart.gin"
SIZES = [
    "Experiment.data=@RepeatTask()",
    "RepeatTask.vocab=32768",
    "Decoder.vocab=32768",
    "RepeatTask.batch_size=2",
    "RepeatTask.sequence_length=512",
    "Experiment.hooks=[]",
]
CHUNKS = (None, 128, 32)


def main() -> None:
    """Prints a table: tokens of a row at a time, bytes, milliseconds, and the ratio."""
    takes = {}
    for chunk in CHUNKS:
        page = lmx.load_experiment(PAGE, [*SIZES, f"NextToken.chunk={chunk}"])
        experiment = page.build()
        graph, params = nnx.split(experiment.model(nnx.Rngs(0)))
        batch = experiment.data.open().batch_at(0, 0)
        take = jax.jit(partial(compute_gradients, graph, experiment.loss))
        takes[chunk] = partial(take.lower(params, batch).compile(), params, batch)
    taken: dict[int | None, list[float]] = {chunk: [] for chunk in CHUNKS}
    for _ in range(ROUNDS):
        for chunk, take in takes.items():
            began = time.perf_counter()
            jax.block_until_ready(take())
            taken[chunk].append(time.perf_counter() - began)
    logits = batch.tokens.size * 32768 * 4
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"logits are {logits / 2**20:.0f} MiB")
    print(f"{'chunk':>6} {'MiB':>6} {'min':>7} {'median':>7} {'max':>7}  ms; ratio")
    base = statistics.median(taken[None])
    for chunk, times in taken.items():
        used = takes[chunk].func.memory_analysis().temp_size_in_bytes / 2**20
        middle = statistics.median(times)
        spread = " ".join(f"{1e3 * t:7.0f}" for t in (min(times), middle, max(times)))
        print(f"{chunk or 'whole'!s:>6} {used:6.0f} {spread}  {middle / base:5.2f}")


if __name__ == "__main__":
    main()
