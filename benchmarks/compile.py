"""Compile time by depth: `python benchmarks/compile.py`.

Compiles the training step and the initial state of a narrow `experiments/gpt2_124m.gin`
with 8 and with 80 scanned layers, interleaved. Times are CPU seconds, which depend
least on other work of the machine.
"""

import platform
import statistics
import time

import jax

import lmx

ROUNDS = 3
CONFIG = "experiments/gpt2_124m.gin"
SETTINGS = [
    "Experiment.data=@RepeatTask()",
    "RepeatTask.vocab=512",
    "RepeatTask.batch_size=8",
    "RepeatTask.sequence_length=128",
    "Experiment.hooks=[]",
    "Experiment.microbatches=1",
    "Decoder.vocab=512",
]
VARIANTS = {
    "8 layers, scanned": ["Decoder.depth=8"],
    "80 layers, scanned": ["Decoder.depth=80"],
}


def time_compile(overrides: list[str]) -> tuple[float, float, float]:
    """Returns CPU seconds of tracing, of compiling the state, and the step."""
    jax.clear_caches()
    start = time.process_time()
    run = lmx.load_experiment(CONFIG, [*SETTINGS, *overrides]).build().open()
    state, batch = run.abstract_state(), run.data.batch_at(0, 0)
    init, step = jax.jit(run.init).lower(), jax.jit(run.step).lower(state, batch)
    traced = time.process_time()
    init.compile()
    compiled = time.process_time()
    step.compile()
    return traced - start, compiled - traced, time.process_time() - compiled


def main() -> None:
    """Prints a table: seconds, and the ratio of the sum to that of the first row."""
    jax.config.update("jax_enable_compilation_cache", False)
    times = {name: [] for name in VARIANTS}
    for round_ in range(ROUNDS + 1):
        for name, overrides in VARIANTS.items():
            seconds = time_compile(overrides)
            if round_:  # the first round imports
                times[name].append((*seconds, sum(seconds)))
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"{'model':20} trace  state   step    min  median     max  s; ratio")
    base = 0.0
    for name, rows in times.items():
        parts = [statistics.median(column) for column in zip(*rows, strict=True)]
        base = base or parts[-1]
        sums = [row[-1] for row in rows]
        spread = f"{min(sums):6.2f}  {parts[-1]:6.2f}  {max(sums):6.2f}"
        each = " ".join(f"{part:6.2f}" for part in parts[:3])
        print(f"{name:19} {each} {spread}  {parts[-1] / base:.2f}")


if __name__ == "__main__":
    main()
