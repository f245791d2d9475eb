"""Memory and time of a chunked loss: `python benchmarks/loss.py`.

The gradient of a small decoder with a large vocabulary, with all logits at once and in
chunks: temporary memory of the compiled program, and milliseconds, interleaved.
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
CONFIG = "experiments/quickstart.gin"
SETTINGS = [
    "Experiment.data=@RepeatTask()",
    "RepeatTask.vocab=32768",
    "Decoder.vocab=32768",
    "RepeatTask.batch_size=2",
    "RepeatTask.sequence_length=512",
    "Experiment.hooks=[]",
]
CHUNKS = (None, 128, 32)


def main() -> None:
    """Prints a table: tokens per chunk, memory, milliseconds, and the ratio."""
    programs = {}
    for chunk in CHUNKS:
        config = lmx.load_experiment(CONFIG, [*SETTINGS, f"NextToken.chunk={chunk}"])
        experiment = config.build()
        graph, params = nnx.split(experiment.model(nnx.Rngs(0)))
        batch = experiment.data.open().batch_at(0, 0)
        build_model = partial(nnx.merge, graph)
        gradient = jax.jit(partial(compute_gradients, build_model, experiment.loss))
        programs[chunk] = partial(
            gradient.lower(params, batch).compile(), params, batch
        )
    times: dict[int | None, list[float]] = {chunk: [] for chunk in CHUNKS}
    for _ in range(ROUNDS):
        for chunk, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[chunk].append(time.perf_counter() - start)
    logits = batch.tokens.size * 32768 * 4
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"logits are {logits / 2**20:.0f} MiB")
    print(f"{'chunk':>6} {'MiB':>6} {'min':>7} {'median':>7} {'max':>7}  ms; ratio")
    base = statistics.median(times[None])
    for chunk, seconds in times.items():
        used = programs[chunk].func.memory_analysis().temp_size_in_bytes / 2**20
        median = statistics.median(seconds)
        spread = " ".join(
            f"{1e3 * t:7.0f}" for t in (min(seconds), median, max(seconds))
        )
        print(f"{chunk or 'all'!s:>6} {used:6.0f} {spread}  {median / base:5.2f}")


if __name__ == "__main__":
    main()
