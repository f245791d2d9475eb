"""Coordinate check: whether what a model computes, and learns, depends on its size.

Yang et al. 2022, arXiv:2203.03466, appendix D.1; over depth as in Dey et al. 2025,
arXiv:2505.01618. Models of growing width, or depth, are trained for a few steps; each
quantity's change should be the same in all.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from scipy import stats

from lmx.config.registry import require
from lmx.config.value import Config, map_nodes, walk
from lmx.core.batch import Batch
from lmx.core.console import format_table, print_line
from lmx.core.files import open_atomic
from lmx.core.rng import key
from lmx.core.sharding import is_variable
from lmx.layers.attention.reference import MASKED
from lmx.layers.tap import ByLayers, TapRequest, record
from lmx.train.experiment import Experiment
from lmx.train.optim.parametrization import is_hidden_matrix
from lmx.train.optim.schedule import Constant
from lmx.train.step import StepConfig, TrainState, train_step

BOUND = 0.05  # of the slope of a change
ALL = -1  # in place of a step: the mean of the slopes of all
TAPS = ("embed", "attention.logits", "block.mid", "block.out", "router.logits")
# The products of random weights in them, and in their change, vanish with the width as
# 1 / sqrt(m) under muP; what is learned takes some steps to exceed them: growth fails.
RANDOM_AT_FIRST = ("attention.logits", "router.logits")
HEAD_TAPS = ("final_norm", "logits")
FAST = {  # to compile: programs run for a few steps only
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
DECAY = "weight decay"  # of hidden weights, relative to them: judged though no change
GROWING = ("width", "hidden", "heads", "kv_heads", "q_rank", "kv_rank")
LEAST_WIDTH = 32
STEPS = 2 ** np.arange(5)  # 16x
TOKENS = 4  # of the batch: fewer than channels, so that the steps of tokens add up


class Slope(NamedTuple):
    """The slope of log2 of a quantity over log2 of a size: a t interval over seeds."""

    size: str
    name: str
    step: int  # 0: the initial value; else the change after so many, or `ALL`
    value: float
    low: float
    high: float

    @property
    def passes(self) -> bool:
        """Whether the mean over steps, in its interval, can be within the bounds."""
        may_shrink = self.name in RANDOM_AT_FIRST or self.high >= -BOUND
        judged = self.step == ALL or self.name == DECAY
        return not judged or (self.low <= BOUND and may_shrink)


class CoordCheck(NamedTuple):
    """The sizes of models, and what was measured in each."""

    size: str  # width or depth
    values: tuple[int, ...]
    measured: dict[str, Float[np.ndarray, "sizes seeds steps"]]

    def slopes(self) -> list[Slope]:
        """Those of all quantities and steps, but for quantities that are zero."""
        found = []
        for name, sizes in self.measured.items():
            lines = {
                step: np.polyfit(np.log2(self.values), np.log2(sizes[:, :, step]), 1)[0]
                for step in range(sizes.shape[2])
                if (sizes[:, :, step] > 0).all()
            }
            if changes := [slopes for step, slopes in lines.items() if step]:
                lines[ALL] = np.mean(changes, axis=0)
            for step, slopes in lines.items():
                half = stats.t.ppf(0.975, len(slopes) - 1) * stats.sem(slopes)
                ends = slopes.mean() - half, slopes.mean() + half
                found.append(Slope(self.size, name, step, slopes.mean(), *ends))
        return found


def resize(config: Config, width: float, depth: int, head_dim: bool) -> Config:
    """The config of a model with all widths times `width`."""
    grown = {*GROWING} - {"heads", "kv_heads"} | {"head_dim"} if head_dim else GROWING

    def change(value: Any) -> Any:
        return map_nodes(value, lambda node: resize(node, width, depth, head_dim))

    fields = {name: change(value) for name, value in config.fields.items()}
    for name in fields.keys() & {*grown}:
        if type(fields[name]) is int:
            size = fields[name] * width
            require(
                size == int(size) >= 1,
                f"{config.name}.{name} = {fields[name]} would be {size:g} in the model"
                f" of {width:g} times the width: choose other --widths.",
            )
            fields[name] = int(size)
    if "depth" in fields:
        fields |= {"depth": depth, "unroll": 1}
    return replace(config, fields=fields)


def _list_widths(config: Config) -> list[int]:
    """Five over a factor of 16; they begin below the config's if that is large."""
    width = config.fields["width"]
    sizes = [x for _, x, _, name in walk(config) if name in GROWING and type(x) is int]
    return (width // math.gcd(4, max(width // LEAST_WIDTH, 1), *sizes) * STEPS).tolist()


def check_coordinates(
    config: Config[Experiment],
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    *,
    steps: int = 10,
    seeds: int = 3,
    head_dim: bool = False,
) -> list[CoordCheck]:
    """Measures an experiment's model in several widths, and in several depths.

    Hidden layers grow with the width, as does the number of heads, or `head_dim`
    instead. By default there are five widths over a factor of 16, and as many depths if
    the parametrization scales with depth.
    """
    experiment, model = config.build(), config.fields["model"]
    width, depth = model.fields["width"], model.fields["depth"]
    if depths is None:
        scales = getattr(experiment.parametrization, "scales_depth", False)
        depths = (2 * STEPS).tolist() if scales else ()
    points = {
        "width": [(w, depth) for w in widths or _list_widths(model)],
        "depth": [(width, d) for d in depths],
    }
    models = {
        (w, d): resize(model, w / width, d, head_dim).build()
        for w, d in (point for each in points.values() for point in each)
    }
    constant = Constant(peak_lr=experiment.schedule.peak_lr)
    batch = experiment.data.open().batch_at(experiment.seed, 0, slice(1))
    batch = jax.tree.map(lambda x: jnp.asarray(x[:, -TOKENS:]), batch)
    measured = {}
    for (w, d), model in models.items():
        start = time.monotonic()
        resized = replace(experiment, model=model, schedule=constant)
        measured[w, d] = measure(resized, batch, steps, seeds)
        seconds = time.monotonic() - start
        print_line(f"width {w}, depth {d}: {seconds:.1f} s")
    return [
        CoordCheck(
            size,
            tuple(point[size == "depth"] for point in each),
            {
                name: np.stack([measured[point][name] for point in each])
                for name in measured[each[0]]
            },
        )
        for size, each in points.items()
        if each
    ]


def measure(
    experiment: Experiment, batch: Batch, steps: int, seeds: int
) -> dict[str, Float[np.ndarray, "seeds steps"]]:
    """The size of each quantity at first, then that of its change after each step."""
    graph, _ = nnx.split(experiment.abstract_model())
    optimizer = experiment.build_optimizer()
    config = StepConfig(
        graph, experiment.loss, optimizer, lambda count: 0.0, experiment.seed, 1
    )

    def begin(key: Array) -> tuple[TrainState, Float[Array, ""]]:
        params = nnx.split(experiment.init_model(nnx.Rngs(params=key)))[1]
        opt_state = optimizer.init(params)
        zeros = optax.tree.zeros_like(params)
        decay, _ = optimizer.update(zeros, opt_state, params)
        state = TrainState(jnp.zeros((), "int32"), params, opt_state)
        return state, _compare_hidden(decay, params)

    def observe(state: TrainState, first: Any) -> tuple[Any, Any]:
        inputs = batch.tokens, batch.positions, batch.segments
        model, first_model = (nnx.merge(graph, x) for x in (state.params, first[1]))
        taps = dict(record(model, TapRequest(frozenset(TAPS + HEAD_TAPS)))(*inputs)[1])
        taps = jax.tree.map(lambda x: jnp.where(x > MASKED / 2, x, 0), taps)
        change = jax.tree.map(jnp.subtract, taps, first[0] or taps)
        # Of the steps of the head: its random weights add what vanishes with the width.
        [x_BTD], [logits_BTV] = taps["final_norm"].values(), taps["logits"].values()
        change["logits"] = {(): logits_BTV - first_model.logits(x_BTD)}
        return (taps, state.params), measure_sizes(change)

    def step(state: TrainState) -> TrainState:
        return train_step(config, state, batch)[0]

    keys = jnp.stack([key(seed, "params") for seed in range(seeds)])
    options = FAST if jax.default_backend() == "cpu" else None
    start, advance, compare = (
        jax.jit(jax.vmap(x), compiler_options=options) for x in (begin, step, observe)
    )
    state, decay = start(keys)
    shapes, _ = jax.eval_shape(compare, state, (None, state.params))
    first, size = compare(state, optax.tree.zeros_like(shapes))
    sizes = [size]
    for _ in range(steps):
        state = advance(state)
        sizes.append(compare(state, first)[1])
    found = {name: np.stack([x[name] for x in sizes], axis=1) for name in sizes[0]}
    found["block.out"][:, 1:] /= found["block.out"][:, :1]  # it is read through norms
    return found | {DECAY: np.asarray(decay)[:, None]}


def measure_sizes(taps: dict[str, ByLayers]) -> dict[str, Float[Array, ""]]:
    """Root mean squares: of means over layers, sums of branches, the last layer."""
    names = (name for name in (*TAPS, "logits") if taps.get(name))
    layers = {name: _stack_layers(taps[name]) for name in names}
    middle, end = layers.pop("block.mid"), layers["block.out"]
    start = jnp.concatenate([layers["embed"], end[:-1]])
    branches = {"attention branch": middle - start, "mlp branch": end - middle}
    layers["block.out"] = end[-1:]
    roots = {
        name: jnp.sqrt(jnp.square(x).mean(axis=tuple(range(1, x.ndim))))
        for name, x in (layers | branches).items()
    }
    return {
        name: x.sum() if name in branches else x.mean() for name, x in roots.items()
    }


def _stack_layers(parts: ByLayers) -> Float[Array, "L *dims"]:
    """The values of a tap in the order of the layers."""
    if () in parts:
        return parts[()][None]
    order = np.argsort([number for numbers in parts for number in numbers])
    return jnp.concatenate([*parts.values()])[order]


def _compare_hidden(changes: Any, params: Any) -> Float[Array, ""]:
    """The mean size of a change relative to the hidden matrix that it changes."""
    leaves = (jax.tree.leaves(x, is_leaf=is_variable) for x in (changes, params))
    norms = [
        [jnp.linalg.norm(x[...]) for x in pair]
        for pair in zip(*leaves, strict=True)
        if is_hidden_matrix(pair[1])
    ]
    return jnp.stack([change / size for change, size in norms]).mean()


def format_check(checks: Sequence[CoordCheck]) -> str:
    """The slopes as text, and the verdict."""
    sections = []
    for check in checks:
        rows = [
            (
                name,
                {0: "initial value", ALL: "all steps"}.get(step, f"step {step}"),
                f"{value:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                "" if slope.passes else "FAIL",
            )
            for slope in check.slopes()
            for _, name, step, value, low, high in [slope]
            if step & (step - 1) == 0 or step == ALL
        ]
        title = f"{check.size} {', '.join(map(str, check.values))}"
        header = ("quantity", "change after", "slope", "95%", "")
        sections.append(f"{title}\n{format_table(header, rows, 2)}")
    failed = sorted({f"{x.name} over {x.size}" for x in list_failures(checks)})
    verdict = f"fail: {', '.join(failed)}" if failed else "pass"
    return "\n\n".join((*sections, verdict))


def list_failures(checks: Sequence[CoordCheck]) -> list[Slope]:
    """The slopes of changes that are out of bounds."""
    return [x for check in checks for x in check.slopes() if not x.passes]


def plot_check(checks: Sequence[CoordCheck], file: Path) -> None:
    """Writes the sizes of changes over width and depth as a PNG."""
    from matplotlib.figure import Figure

    columns = max(len(check.measured) for check in checks)
    figure = Figure((3 * columns, 3 * len(checks)), layout="constrained", dpi=120)
    panels = figure.subplots(len(checks), columns, squeeze=False)
    for row, check in zip(panels, checks, strict=True):
        for axes, (name, sizes) in zip(row, check.measured.items(), strict=False):
            for step in range(sizes.shape[2]):
                style = dict(color="gray", ls=":") if step == 0 else {}
                axes.plot(
                    check.values, sizes[:, :, step].mean(axis=1), "o-", ms=3, **style
                )
            axes.set(xscale="log", yscale="log", xlabel=check.size, title=name)
    with open_atomic(file) as opened:
        figure.savefig(opened, format="png")
