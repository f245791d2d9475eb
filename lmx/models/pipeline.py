"""Layers dealt out to stages, through which parts of a batch follow each other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from lmx.config.names import ConfigError, configurable
from lmx.core.mean import Aux
from lmx.core.spread import along, axes, kept, parts
from lmx.layers.attention.context import Context
from lmx.models.remat import Remat, of_stages

# Turns of a cycle, stacked over L: the stream, auxiliary means and what is remembered.
Layers = Callable[
    [PyTree, Float[Array, "B T D"], Context, Remat], tuple[Array, Aux, PyTree]
]


def bubble(stages: int, microbatches: int, rounds: int) -> float:
    """The share of its time that a stage has nothing to do."""
    return (stages - 1) / (microbatches * rounds + stages - 1)


@configurable
@dataclass(frozen=True, kw_only=True)
class Circular:
    """A batch's parts go round the stages, and meet as many layers at each, each round.

    Layer l is at stage (l // n) % stages, where n = layers / (rounds * stages): of one
    round, that is GPipe (Huang et al. 2018, arXiv:1811.06965). Of `microbatches *
    rounds + stages - 1` turns each stage idles in `stages - 1` (`bubble`). Circular
    schedules: Narayanan et al. 2021, arXiv:2104.04473, section 2.2, whose backward
    passes begin earlier; here they follow all forward ones.

    Between turns a part's stream moves to the next stage. Parameters are kept in the
    order of layers, a block of them at each stage: with more than one round they are
    brought to their stages once a step, and their gradients back. Rows are not split
    over stages: what stands before and behind the layers is done by each, but that the
    vocabulary is split over them.

    Attributes:
        microbatches: into which a batch, or one of `Experiment.microbatches`, is
            parted; None: as many as leave each device a row.
        rounds: how often a part passes each stage.
    """

    microbatches: int | None = None
    rounds: int = 1

    def __post_init__(self):
        if self.rounds < 1 or (self.microbatches or 1) < 1:
            raise ConfigError("Circular.rounds and .microbatches must be 1 or more.")

    def __call__(
        self,
        run: Layers,
        turns: PyTree,
        x: Float[Array, "B T D"],
        context: Context,
        remat: Remat,
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """What `run` makes of `turns`, the last of which is what there is to remember.

        Only where layers are split, and nothing is remembered, are there stages. Raises
        ConfigError where layers or rows do not come out even.
        """
        if parts("L") == 1 or turns[-1] is not None:
            return run(turns, x, context, remat)
        stages, rounds = parts("L"), self.rounds
        count = self.microbatches or max(x.shape[0] // parts("B"), 1)
        _check(jax.tree.leaves(turns)[0].shape[0], x.shape[0], count, stages, rounds)
        parted = partial(jax.tree.map, lambda x: _parted(x, count))
        dealt = jax.tree.map(lambda w: _dealt(w, rounds, stages), turns)
        rows = parted((context.here, context.keys))
        idle_BTD = parted(x)[0]  # of real vectors comes no NaN, as might of zeros

        def stage(turns: PyTree, x: Array, at: Int[Array, ""]) -> tuple[Array, Aux]:
            """What a stage makes of the part that has come to it, its `at`th."""
            live = (at >= 0) & (at < count * rounds)
            here, keys = jax.tree.map(lambda x: x[at % count], rows)
            now = jnp.clip(at // count, 0, rounds - 1) if rounds > 1 else 0
            turns = jax.tree.map(lambda w: w[now], turns)
            x = jnp.where(live, x, idle_BTD)
            told = context._replace(here=here, keys=keys)
            return run(turns, x, told, "keep_all")[:2]

        stage = of_stages(stage, remat, rounds)
        x_UBTD, aux = _run(stage, dealt, parted(x), Schedule(stages, count, rounds))
        return kept(x_UBTD.swapaxes(0, 1).reshape(x.shape), "BTD"), aux, None


class Schedule(NamedTuple):
    """How parts go round: part u is in round r at stage s after r * count + u + s."""

    stages: int
    count: int
    rounds: int

    @property
    def turns(self) -> int:
        """How many turns there are in all."""
        return self.count * self.rounds + self.stages - 1

    def summed(self, y: Float[Array, "turns L parts"]) -> Float[Array, "layers"]:
        """What was measured in all turns but idle ones, summed over parts of a batch.

        In the order of layers.
        """
        live = self.count * self.rounds
        busy = jnp.stack([y[s : s + live, s] for s in range(self.stages)], axis=1)
        rounds = busy.reshape(self.rounds, self.count, self.stages, -1)
        return rounds.sum(axis=1).reshape(-1)


def _run(
    stage: Callable[..., tuple[Array, Aux]],
    turns: PyTree,
    x: Float[Array, "U B T D"],
    plan: Schedule,
) -> tuple[Float[Array, "U B T D"], Aux]:
    """Every part through every stage, as often as there are rounds.

    At the first stage parts queue for their next round, and at last to leave.
    """
    stage_L = jnp.arange(plan.stages)
    first_L1111 = (stage_L == 0)[:, None, None, None, None]
    queue_LUBTD = jnp.where(first_L1111, x[None], jnp.zeros_like(x)[None])

    @partial(along, axes("L"), in_axes=(0, 0, 0, 0, None))
    def work(turns, number, queue, x, at):
        x = jnp.where(number == 0, queue[at % plan.count], x)
        return stage(turns, x, at - number)

    @partial(along, axes("L"), in_axes=(0, 0, 0, None))
    def wait(number, queue, x, at):
        slot = (at - plan.stages + 1) % plan.count
        comes = (number == 0) & (at >= plan.stages - 1)
        return queue.at[slot].set(jnp.where(comes, x, queue[slot]))

    def turn(carry, at):
        queue_LUBTD, x_LBTD = carry
        x_LBTD, aux = work(turns, stage_L, queue_LUBTD, x_LBTD, at)
        x_LBTD = kept(jnp.roll(kept(x_LBTD, "LBTD"), 1, axis=0), "LBTD")
        queue_LUBTD = wait(stage_L, queue_LUBTD, x_LBTD, at)
        return (kept(queue_LUBTD, "LUBTD"), x_LBTD), aux

    begin = kept(queue_LUBTD, "LUBTD"), kept(jnp.zeros_like(queue_LUBTD[:, 0]), "LBTD")
    (queue_LUBTD, _), aux = jax.lax.scan(turn, begin, jnp.arange(plan.turns))
    return queue_LUBTD[0], jax.tree.map(plan.summed, aux)


def _parted(x: Shaped[Array, "B *dims"], count: int) -> Shaped[Array, "U M *dims"]:
    """Part u has rows u, u + count, ..., so that each device keeps the rows it has."""
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _dealt(
    w: Shaped[Array, "layers *dims"], rounds: int, stages: int
) -> Shaped[Array, "L rounds per *dims"]:
    """Each stage's parameters of each round."""
    dealt = w.reshape(rounds, stages, -1, *w.shape[1:]).swapaxes(0, 1)
    return kept(dealt, "L" + "_" * (dealt.ndim - 1))


def _check(turns: int, rows: int, count: int, stages: int, rounds: int) -> None:
    """Refuses what does not come out even."""
    if turns % (stages * rounds):
        raise ConfigError(
            f"{turns} layers, or turns of a cycle of kinds, cannot be dealt out evenly"
            f" to {stages} stages in {rounds} rounds: change Decoder.depth, Mesh.stage"
            " or Circular.rounds."
        )
    if rows % (count * parts("B")):
        raise ConfigError(
            f"{rows} rows cannot be parted evenly into {count} microbatches on"
            f" {parts('B')} devices: change the batch or Circular.microbatches."
        )
    if rounds > 1 and count < stages:
        raise ConfigError(
            f"{count} microbatches cannot go round {stages} stages: what comes back"
            " must find its stage free. Set Circular.rounds=1, or Circular.microbatches"
            f" to {stages} or more."
        )
