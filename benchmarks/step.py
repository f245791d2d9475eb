"""Time of a training step: `python benchmarks/step.py`.

Compares the step of `experiments/quickstart.gin`, on random tokens, with variants in
which one setting differs. The variants are interleaved, for several rounds.
"""

import platform
import statistics
import time

import jax

import lmx

ROUNDS = 10
CONFIG = "experiments/quickstart.gin"
SETTINGS = [
    "Experiment.data=@RepeatTask()",
    "RepeatTask.vocab=4096",
    "RepeatTask.batch_size=2",
    "RepeatTask.sequence_length=256",
    "Experiment.hooks=[]",
]
VARIANTS = {
    "baseline": [],
    "loop over layers": ["Decoder.unroll=1"],
    "adamw, not muon": ["Experiment.optimizer=@adamw"],
    "no convolutions": ["PreNorm.conv=None"],
    "two microbatches": ["Experiment.microbatches=2"],
    "twice the batch": ["RepeatTask.batch_size=4"],
}


class TrainingRun:
    """A run that is advanced step by step."""

    def __init__(self, overrides: list[str]):
        self.run = lmx.load_experiment(CONFIG, [*SETTINGS, *overrides]).build().open()
        self.state = self.run.init()
        self.done = 0

    def time_step(self) -> float:
        """Returns the seconds of the next step, without those of its batch."""
        batch = self.run.put_batch(self.run.data.batch_at(0, self.done))
        start = time.perf_counter()
        self.state, metrics = self.run.step(self.state, batch)
        jax.block_until_ready(metrics)
        self.done += 1
        return time.perf_counter() - start


def main() -> None:
    """Prints a table: milliseconds, and the ratio of tokens per second to the first."""
    runs = {name: TrainingRun(overrides) for name, overrides in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS + 2):
        for name, run in runs.items():
            seconds = run.time_step()
            if round_ >= 2:  # the first compile
                times[name].append(seconds)
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"{'step':20} {'min':>7} {'median':>7} {'max':>7}  ms; tokens/s, ratio")
    base = 0.0
    for name, seconds in times.items():
        median = statistics.median(seconds)
        speed = runs[name].run.batch_schedule.count_tokens(1) / median
        base = base or speed
        spread = " ".join(
            f"{1e3 * t:7.1f}" for t in (min(seconds), median, max(seconds))
        )
        print(f"{name:20} {spread}  {speed:8,.0f} {speed / base:5.2f}")


if __name__ == "__main__":
    main()
