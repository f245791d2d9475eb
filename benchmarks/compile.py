"""How long programs take to make, by depth: `python benchmarks/compile.py`.

The training step and the state of step 0 of `experiments/gpt2_124m.gin`, narrowed, of 8
layers and of 80 that are scanned; each made anew, in turn. Seconds are the processor's,
which other work on the machine changes least.
"""

import platform
import statistics
import time

import jax

import lmx

ROUNDS = 3
PAGE = "experiments/gpt2_124m.gin"
NARROW = [
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


def seconds(overrides: list[str]) -> tuple[float, float, float]:
    """To trace both programs and check them, to make the state's, and the step's."""
    jax.clear_caches()
    began = time.process_time()
    run = lmx.load_experiment(PAGE, [*NARROW, *overrides]).build().open()
    state, batch = run.abstract_state(), run.data.batch_at(0, 0)
    init, step = jax.jit(run.init).lower(), jax.jit(run.step).lower(state, batch)
    traced = time.process_time()
    init.compile()
    born = time.process_time()
    step.compile()
    return traced - began, born - traced, time.process_time() - born


def main() -> None:
    """Prints a table: seconds, and the ratio of the sum to that of the first."""
    jax.config.update("jax_enable_compilation_cache", False)
    taken = {name: [] for name in VARIANTS}
    for round_ in range(ROUNDS + 1):
        for name, overrides in VARIANTS.items():
            found = seconds(overrides)
            if round_:  # the first imports
                taken[name].append((*found, sum(found)))
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"{'model':20} trace  state   step    min  median     max  s; ratio")
    base = 0.0
    for name, rows in taken.items():
        parts = [statistics.median(column) for column in zip(*rows, strict=True)]
        base = base or parts[-1]
        sums = [row[-1] for row in rows]
        spread = f"{min(sums):6.2f}  {parts[-1]:6.2f}  {max(sums):6.2f}"
        each = " ".join(f"{part:6.2f}" for part in parts[:3])
        print(f"{name:19} {each} {spread}  {parts[-1] / base:.2f}")


if __name__ == "__main__":
    main()
