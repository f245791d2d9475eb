"""What a training step is made of: `python benchmarks/step.py`.

The step of `experiments/quickstart.gin` on random tokens, beside itself with one thing
changed; all of them in turn, several rounds.
"""

import platform
import statistics
import time

import jax

import lmx

ROUNDS = 10
PAGE = "experiments/quickstart.gin"
ECHO = [
    "Experiment.data=@RepeatTask()",
    "RepeatTask.vocab=4096",
    "RepeatTask.batch_size=2",
    "RepeatTask.sequence_length=256",
    "Experiment.hooks=[]",
]
VARIANTS = {
    "as it is": [],
    "a loop over layers": ["Decoder.unroll=1"],
    "adamw for muon": ["Experiment.optimizer=@adamw"],
    "no convolutions": ["PreNorm.conv=None"],
    "two microbatches": ["Experiment.microbatches=2"],
    "twice the rows": ["RepeatTask.batch_size=4"],
}


class Trained:
    """A run that can be asked for one step more."""

    def __init__(self, overrides: list[str]):
        self.run = lmx.load_experiment(PAGE, [*ECHO, *overrides]).build().open()
        self.state = self.run.init()
        self.done = 0

    def seconds(self) -> float:
        """How long the next step takes, its batch made ahead."""
        batch = self.run.put_batch(self.run.data.batch_at(0, self.done))
        began = time.perf_counter()
        self.state, metrics = self.run.step(self.state, batch)
        jax.block_until_ready(metrics)
        self.done += 1
        return time.perf_counter() - began


def main() -> None:
    """Prints a table: milliseconds, and the ratio of tokens per second to the first."""
    runs = {name: Trained(overrides) for name, overrides in VARIANTS.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS + 2):
        for name, run in runs.items():
            seconds = run.seconds()
            if round_ >= 2:  # the first compile
                taken[name].append(seconds)
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {ROUNDS} rounds")
    print(f"{'step':20} {'min':>7} {'median':>7} {'max':>7}  ms; tokens/s, ratio")
    base = 0.0
    for name, times in taken.items():
        middle = statistics.median(times)
        speed = runs[name].run.count_tokens(1) / middle
        base = base or speed
        spread = " ".join(f"{1e3 * t:7.1f}" for t in (min(times), middle, max(times)))
        print(f"{name:20} {spread}  {speed:8,.0f} {speed / base:5.2f}")


if __name__ == "__main__":
    main()
