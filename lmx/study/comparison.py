"""Comparisons of two experiments: the runs of equal seeds, the report and its plot."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy import stats

from lmx.config.registry import require
from lmx.config.value import Config, diff
from lmx.core.console import format_table, print_line
from lmx.core.files import open_atomic
from lmx.models.params import flatten_params
from lmx.run.plots import extract_curve
from lmx.run.run_dir import (
    find_losses,
    read_config,
    read_last_metrics,
    read_metadata,
    read_metrics,
)
from lmx.study.fit import Estimate
from lmx.study.sweep import Start, Sweep, SweepRun, is_done, run_sweep
from lmx.study.sweep_points import Grid
from lmx.train.experiment import Experiment, load_experiment

ERROR_RATE, POWER = 0.05, 0.8  # of a test: all looks at the pairs together
FIRST_LOOK, MOST_LOOKS = 3, 50  # pairs of a sequential test
SHAPE = 0.25  # power of the pairs by which its levels change
DRAWS, MARGIN = 100_000, 0.0014  # of its null distribution: two standard errors
Curve = tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]  # tokens and losses


class Difference(NamedTuple):
    """The mean of paired differences B - A of losses."""

    mean: Estimate
    deviation: float  # of the differences
    pairs: int
    verdict: str  # on B: better, worse or cannot tell
    more_pairs: int | None  # that decide a difference of this size with 80% power


class Side(NamedTuple):
    """The finished runs of one experiment, which differ in their seeds alone."""

    config: Config[Experiment]
    metric: str  # the loss
    tokens: int  # of training, of each run
    flops: float  # of training, of each run
    curves: Mapping[int, Curve]  # by seed
    speeds: Mapping[int, float]  # tokens per second, or NaN

    def read_loss(self, seed: int, flops: float) -> float:
        """The loss after so many FLOPs, between evaluations; the final one from all."""
        return float(np.interp(flops * self.tokens / self.flops, *self.curves[seed]))


class SeedComparison(NamedTuple):
    """Two experiments A and B over seeds. Ratios above 1 are in favour of B."""

    changes: Mapping[str, tuple[str, str]]  # settings of A and B, by path
    metric: str
    losses: Mapping[int, tuple[float, float]]  # of A and B, by seed
    difference: Difference
    at_equal_flops: Difference | None  # where the FLOPs of the runs differ
    ratios: Mapping[str, Estimate]


def judge(differences: Sequence[float], most: int | None = None) -> Difference:
    """The verdict on paired differences B - A, by Student's t at a level of 5%.

    With `most`, the test is sequential: one may look after each pair from the third to
    that one, and stop at a verdict; equal experiments are then called different at any
    look in 5% of all cases. `more_pairs` is None if it is above 1,000.
    """
    pairs, least = len(differences), 2 if most is None else FIRST_LOOK
    level = find_level(pairs, most)
    require(
        least <= pairs <= (most or pairs),
        f"{pairs} pairs of seeds: a test has {least} to {most or 'any number'}.",
    )
    mean = estimate_mean(differences, level)
    deviation = float(np.std(differences, ddof=1))
    verdict = "worse" if mean.low > 0 else "better" if mean.high < 0 else "cannot tell"
    counts = np.arange(pairs + 1, 1001)
    levels = np.array([find_level(count, most) for count in counts.tolist()])
    reach = stats.t.isf(levels / 2, counts - 1) + stats.t.ppf(POWER, counts - 1)
    decide = counts[reach * deviation < abs(mean.value) * np.sqrt(counts)] - pairs
    return Difference(
        mean, deviation, pairs, verdict, next(iter(decide.tolist()), None)
    )


def estimate_mean(values: Sequence[float], level: float = ERROR_RATE) -> Estimate:
    """A mean and its t interval."""
    quantile = stats.t.isf(level / 2, len(values) - 1)
    mean, half = float(np.mean(values)), float(quantile * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def find_level(pairs: int, most: int | None) -> float:
    """The two-sided level of the t test at a look, so that all looks have 5% together.

    Its normal quantile falls with the fourth root of the pairs: Wang and Tsiatis 1987,
    Biometrics 43(1), with delta = 1/4. Intervals at these levels hold together at all
    looks: Jennison and Turnbull 1989, JRSS B 51(3), repeated confidence intervals.
    """
    if most is None:
        return ERROR_RATE
    return float(
        2 * stats.norm.sf(_last_quantile(most) * max(most / pairs, 1) ** SHAPE)
    )


@cache
def _last_quantile(most: int) -> float:
    """The normal quantile of the level at the last look.

    Simulated: the t statistics of equal experiments have a joint distribution without
    parameters.
    """
    require(
        FIRST_LOOK <= most <= MOST_LOOKS,
        f"at most {most} seeds: a sequential test has {FIRST_LOOK} to {MOST_LOOKS}.",
    )
    draws = np.random.default_rng(0).normal(size=(DRAWS, most))
    counts = np.arange(1, most + 1)
    means = draws.cumsum(axis=1) / counts
    variances = (draws**2).cumsum(axis=1) / counts - means**2
    means, variances, counts = (
        x[..., FIRST_LOOK - 1 :] for x in (means, variances, counts)
    )
    t = np.abs(means) / np.sqrt(variances / (counts - 1))
    quantiles = stats.norm.isf(stats.t.sf(t, counts - 1))
    largest = (quantiles * (counts / most) ** SHAPE).max(axis=1)
    return float(np.quantile(largest, 1 - ERROR_RATE + MARGIN))


def find_tokens(curve: Curve, loss: float) -> float:
    """The tokens after which a curve first has a loss, between its points."""
    tokens, lowest = curve[0], np.minimum.accumulate(curve[1])
    end = int((lowest <= loss).argmax())
    near = slice(max(end - 1, 0), end + 1)
    return float(np.interp(-loss, -lowest[near], tokens[near]))


def measure_speedup(a: Curve, b: Curve) -> float:
    """Tokens of A over tokens of B to equal loss: the final one of the worse run."""
    (tokens_a, losses_a), (tokens_b, losses_b) = a, b
    if losses_b.min() <= losses_a[-1]:
        return float(tokens_a[-1]) / find_tokens(b, losses_a[-1])
    return find_tokens(a, losses_b[-1]) / float(tokens_b[-1])


def list_pairs(
    sides: Sequence[tuple[str, Sequence[str]]], count: int
) -> list[SweepRun]:
    """The runs of A and B for so many seeds, from that of A on, pair by pair.

    A side is an experiment and overrides. Raises ConfigError as `check_pair` does.
    """
    a, b = (load_experiment(*side) for side in sides)
    check_pair(a, b)
    seeds = range(a.fields["seed"], a.fields["seed"] + count)
    points, runs = Grid(values={"Experiment.seed": tuple(seeds)}), []
    for label, (name, words) in zip("AB", sides, strict=True):
        settings = dict(word.split("=", 1) for word in words)
        sweep = Sweep(experiment=name, points=points, settings=settings)
        runs.append([x._replace(name=f"{label}/{x.name}") for x in sweep.list_runs()])
    return [run for pair in zip(*runs, strict=True) for run in pair]


def run_pairs(
    sides: Sequence[tuple[str, Sequence[str]]],
    folder: Path,
    start: Start,
    seeds: int,
    most: int | None,
) -> tuple[Side, Side] | int:
    """Trains so many pairs, or up to `most` until a verdict. The sides, or a status.

    Each run is trained by one worker, or resumed by it: see `run_sweep`.
    """
    counts = range(FIRST_LOOK, most + 1) if most else [seeds]
    judge([0.0] * max(counts, default=FIRST_LOOK), most)  # refuses numbers of seeds
    pairs = list_pairs(sides, counts[-1])
    for count in counts:
        runs = pairs[: 2 * count]
        if status := run_sweep(runs, folder, start):
            return status
        paths = [folder / run.name for run in runs]
        a, b = read_side(paths[::2]), read_side(paths[1::2])
        verdict = compare_sides(a, b, most).difference.verdict
        print_line(f"{count} seeds: {verdict}")
        if verdict != "cannot tell" or count == counts[-1]:
            return a, b
    raise AssertionError


def check_pair(a: Config, b: Config) -> dict[str, tuple[str, str]]:
    """What differs between two experiments, but for the seed.

    Refuses those that are equal, or whose losses are not of the same tokens.
    """
    pairs = diff(a.identity(), b.identity())
    changes = {
        path: (f"{x}", f"{y}") for path, (x, y) in pairs.items() if path != "seed"
    }
    require(changes, "A and B are the same experiment: change a setting of B.")
    require(
        _list_measures(a) == _list_measures(b),
        "the losses of A and B are not of the same tokens: give both an @Evaluate() of"
        " the same data.",
    )
    return changes


def _list_measures(config: Config) -> list[Any]:
    """What sets the loss: the data of the evaluations, or else those of training."""
    hooks = [hook.fields for hook in config.fields["hooks"]]
    evaluations = [(x["name"], x["data"].identity()) for x in hooks if "data" in x]
    return evaluations or [config.fields[x].identity() for x in ("loss", "data")]


def read_side(paths: Sequence[Path]) -> Side:
    """The runs in some folders: finished ones, which differ in their seeds alone."""
    require(paths, "a folder has no runs: give two folders of runs, or two configs.")
    configs = {path: read_config(path) for path in paths}
    first, metadata = configs[paths[0]], read_metadata(paths[0])
    schedule, metric = first.build().data.schedule, ""
    curves, speeds = {}, {}
    for path, config in configs.items():
        require(is_done(path), f"{path} is not finished: resume it with lmx train.")
        others = diff(first.identity(), config.identity()).keys() - {"seed"}
        require(
            not others,
            f"{path} and {paths[0]} differ in {', '.join(sorted(others))}: give runs"
            " that differ in their seeds alone.",
        )
        seed, rows = config.fields["seed"], list(read_metrics(path))
        require(seed not in curves, f"{path} is a second run of seed {seed}: drop one.")
        losses = find_losses(read_last_metrics(path))
        metric = losses.get("validation") or next(iter(losses.values()), "loss")
        steps, values = extract_curve(rows, metric)
        require(
            steps[-1:] == [config.fields["steps"]],
            f"{path} has no finite {metric} at its last step: leave it out.",
        )
        curves[seed] = np.array([*map(schedule.count_tokens, steps)]), np.array(values)
        _, speed = extract_curve(rows, "tokens_per_second")
        speeds[seed] = float(np.median(speed or [math.nan]))
    tokens, flops = metadata["tokens"], float(metadata["flops"])
    return Side(first, metric, tokens, flops, curves, speeds)


def compare_sides(a: Side, b: Side, most: int | None = None) -> SeedComparison:
    """Compares the runs of the seeds that both have; `most` as in `judge`."""
    changes, seeds = check_pair(a.config, b.config), sorted({*a.curves} & {*b.curves})
    require(
        a.metric == b.metric,
        f"the loss of A is {a.metric}, and that of B {b.metric}: give runs with the"
        " same evaluations.",
    )

    def read(flops: float) -> tuple[dict[int, tuple[float, float]], Difference]:
        losses = {x: (a.read_loss(x, flops), b.read_loss(x, flops)) for x in seeds}
        return losses, judge(
            [after - before for before, after in losses.values()], most
        )

    losses, difference = read(math.inf)
    differs = not math.isclose(a.flops, b.flops, rel_tol=0.01)
    matched = read(min(a.flops, b.flops))[1] if differs else None
    tokens = np.array([measure_speedup(a.curves[x], b.curves[x]) for x in seeds])
    speed = np.array([b.speeds[x] / a.speeds[x] for x in seeds])
    ratios = {
        "tokens to equal loss, A / B": tokens,
        "FLOPs to equal loss, A / B": tokens
        * (a.flops / a.tokens * b.tokens / b.flops),
        "tokens per second, B / A": speed,
        "time to equal loss, A / B": tokens * speed,
    }
    means = {
        name: estimate_mean(np.log(values).tolist()).map(math.exp)
        for name, values in ratios.items()
        if np.isfinite(values).all()
    }
    return SeedComparison(changes, a.metric, losses, difference, matched, means)


def list_notes(a: Side, b: Side, result: SeedComparison) -> list[str]:
    """What both sides have in common, and what makes the comparison doubtful."""
    configs, left = (a.config, b.config), sorted({*a.curves} ^ {*b.curves})
    experiments = [replace(x.build(), seed=min(result.losses)) for x in configs]
    equal, count = count_equal_tensors(*experiments)
    notes = {
        f"{equal} of {count} tensors of one name and shape begin with equal values": (
            not any(x.init_from for x in experiments)
        ),
        "warning: tensors that one side lacks change the random keys of others": (
            equal < count
        ),
        "warning: A and B are trained on other data, or batches of other sizes": (
            any(path.split(".")[0] == "data" for path in result.changes)
        ),
        f"warning: only one side has the seeds {left}": left,
        "warning: the loss is that of a batch of training: give both an @Evaluate()": (
            result.metric == "loss"
        ),
        "warning: no parametrization scales learning rate and weight decay of both"
        " sides: unless they are tuned for each, they may be what differs": (
            not all(x.fields.get("parametrization") for x in configs)
        ),
    }
    return [note for note, holds in notes.items() if holds]


def count_equal_tensors(a: Experiment, b: Experiment) -> tuple[int, int]:
    """Parameters of one name and shape that begin with equal values, and all of one."""
    first, second = (jax.jit(partial(_sample_initial, x))() for x in (a, b))
    both = first.keys() & second.keys()
    return sum(bool((first[x] == second[x]).all()) for x in both), len(both)


def _sample_initial(experiment: Experiment) -> dict[str, jax.Array]:
    """Sixteen values or so of each parameter, by its path and shape."""
    params = flatten_params(experiment.make_init()().all_params)
    return {
        f"{path} {x.shape}": x.ravel()[:: max(x.size // 16, 1)]
        for path, x in params.items()
    }


def format_comparison(result: SeedComparison, notes: Sequence[str]) -> str:
    """A comparison as text."""
    changes = [(path, *values) for path, values in result.changes.items()]
    losses = [
        (seed, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}")
        for seed, (a, b) in result.losses.items()
    ]
    ratios = [
        (name, f"{value:.3f}", f"{low:.3f} to {high:.3f}")
        for name, (value, low, high) in result.ratios.items()
    ]
    matched = result.at_equal_flops
    sections = [
        format_table(("", "A", "B"), changes),
        format_table(("seed", "A", "B", "B - A"), losses),
        f"{result.metric}: {format_verdict(result.difference)}",
        *([f"At equal FLOPs: {format_verdict(matched)}"] if matched else []),
        format_table(("", "ratio", "95%"), ratios),
        "\n".join(notes),
    ]
    return "\n\n".join(sections)


def format_verdict(difference: Difference) -> str:
    """A line with the verdict, the interval, and the seeds that would decide."""
    (mean, low, high), more = difference.mean, difference.more_pairs or "over 1,000"
    verdict = f"B is {difference.verdict}"
    if difference.verdict == "cannot tell":
        verdict = f"cannot tell ({more} more seeds would decide such a difference)"
    return f"{verdict}: B - A {mean:+.4g} (95%: {low:+.4g} to {high:+.4g})"


def plot_comparison(a: Side, b: Side, result: SeedComparison, file: Path) -> None:
    """Writes the mean curves of both sides with 95% bands as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
    axes = figure.subplots()
    for label, side in (("A", a), ("B", b)):
        tokens, _ = side.curves[min(result.losses)]
        values = [np.interp(tokens, *side.curves[seed]) for seed in result.losses]
        mean, low, high = np.transpose([estimate_mean(x) for x in np.transpose(values)])
        axes.plot(tokens, mean, label=label)
        axes.fill_between(tokens, low, high, alpha=0.25)
    axes.set(xlabel="tokens", ylabel=result.metric)
    axes.set_title(f"means of {len(values)} seeds, 95%: {result.difference.verdict}")
    axes.legend()
    with open_atomic(file) as opened:
        figure.savefig(opened, format="png")
