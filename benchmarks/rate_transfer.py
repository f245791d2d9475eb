"""Best learning rates of models of several sizes, all rates and seeds at once.

    python benchmarks/rate_transfer.py experiments/sweeps/rate_width.gin [--png FILE]
        [Name.parameter=value ...]

The runs are those of the sweep, whose settings `WSD.peak_lr` and `Experiment.seed` are
vectorized with `jax.vmap`. Prints the mean validation loss of each rate, its standard
error, and the best rate.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lmx.study.sweep  # the root of the config
from lmx.config.gin import parse
from lmx.config.resolve import resolve
from lmx.core import rng
from lmx.train.step import StepConfig, TrainState, train_step


def train(experiment, rates, seeds):
    """The validation loss of each pair of a rate and a seed."""
    graph, _ = nnx.split(experiment.abstract_model())

    def make_config(rate):
        schedule = replace(experiment.schedule, peak_lr=rate)
        scheduled = replace(experiment, schedule=schedule)
        parts = scheduled.build_optimizer(), schedule.build(experiment.steps)
        return StepConfig(graph, experiment.loss, *parts, experiment.seed, 1)

    def begin(rate, key):
        params = nnx.split(experiment.init_model(nnx.Rngs(params=key)))[1]
        opt_state = make_config(rate).optimizer.init(params)
        return TrainState(jnp.zeros((), "int32"), params, opt_state)

    def step(state, rate, batch):
        return train_step(make_config(rate), state, batch)[0]

    def evaluate(state, batch):
        return experiment.loss(nnx.merge(graph, state.params), batch)[0]

    data = experiment.data.open()
    numbers = {seed: i for i, seed in enumerate(sorted({*seeds}))}
    keys = jnp.stack([rng.key(seed, "params") for seed in seeds])
    state = jax.jit(jax.vmap(begin))(rates, keys)
    advance = jax.jit(jax.vmap(step), donate_argnums=0)
    rows = np.array([numbers[seed] for seed in seeds])
    for number in range(experiment.steps):
        batches = [data.batch_at(seed, number) for seed in numbers]
        batch = jax.tree.map(lambda *x: jnp.stack(x)[rows], *batches)
        state = advance(state, rates, batch)
    [hook] = experiment.hooks
    held_out = hook.data.open()
    measure = jax.jit(jax.vmap(evaluate, (0, None)))
    batches = [held_out.batch_at(0, number) for number in range(hook.batches)]
    means = [measure(state, jax.tree.map(jnp.asarray, batch)) for batch in batches]
    return np.asarray(sum(x.total for x in means) / sum(x.weight for x in means))


def main():
    """Trains the runs of a sweep and prints a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    sweep = resolve(parse([args.sweep], []), "Sweep").build()
    groups = defaultdict(list)
    for run in sweep.list_runs():
        varied = ("peak_lr", "seed", "Sweep")
        name = ",".join(x for x in run.name.split(",") if not x.startswith(varied))
        config = lmx.load_experiment(
            sweep.experiment, [*run.arguments[1:], *args.overrides]
        )
        groups[name].append(config)
    curves = {}
    for name, configs in groups.items():
        rates = np.array([config["schedule.peak_lr"] for config in configs])
        seeds = [config["seed"] for config in configs]
        losses = train(configs[0].build(), jnp.asarray(rates), seeds)
        grid = np.unique(rates)
        curves[name] = [np.array(losses[rates == rate]) for rate in grid]
        means = np.array([x.mean() for x in curves[name]])
        errors = [x.std(ddof=1) / len(x) ** 0.5 for x in curves[name]]
        row = " ".join(f"{x:.4f}+-{e:.4f}" for x, e in zip(means, errors, strict=True))
        print(f"{name}: {row}; best {grid[means.argmin()]:g}", flush=True)
    if args.png:
        plot(curves, grid, args.png)


def plot(curves, grid, file):
    """One panel for each parametrization, one line for each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    for name, losses in curves.items():
        axes = right if "None" in name else left
        means = [x.mean() for x in losses]
        parts = name.split(",")
        label = ",".join(x for x in parts if not x.startswith("parametrization"))
        axes.plot(grid, means, "o-", label=label, ms=3)
    left.set(title="CompleteP", ylabel="validation loss, nats per byte")
    right.set(title="standard parametrization")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="learning rate")
        axes.legend()
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
