"""Layers dealt out to stages, through which parts of a batch follow each other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from lmx.config.registry import ConfigError, configurable
from lmx.core.mean import Aux
from lmx.core.partitioning import constrain, mesh_axes, num_shards, vmap_over_axes
from lmx.layers.attention.inputs import AttentionInputs
from lmx.models.remat import Remat, remat_stage

# Turns of a cycle, stacked over L: the stream, auxiliary means and what is remembered.
ApplyLayers = Callable[
    [PyTree, Float[Array, "B T D"], AttentionInputs, Remat], tuple[Array, Aux, PyTree]
]


def bubble_fraction(stages: int, microbatches: int, virtual_stages: int) -> float:
    """The share of its time that a stage has nothing to do."""
    return (stages - 1) / (microbatches * virtual_stages + stages - 1)


@configurable
@dataclass(frozen=True, kw_only=True)
class PipelineSchedule:
    """A batch's parts go round the stages, and meet as many layers at each, each round.

    Layer l is at stage (l // n) % stages, where n = layers / (rounds * stages): of one
    round, that is GPipe (Huang et al. 2018, arXiv:1811.06965). Of `microbatches *
    rounds + stages - 1` turns each stage idles in `stages - 1` (`bubble_fraction`). Circular
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
    virtual_stages: int = 1

    def __post_init__(self):
        if self.virtual_stages < 1 or (self.microbatches or 1) < 1:
            raise ConfigError(
                "PipelineSchedule.virtual_stages and .microbatches must be 1 or more."
            )

    def __call__(
        self,
        apply_layers: ApplyLayers,
        iterations: PyTree,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        remat: Remat,
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """What `run` makes of `turns`, the last of which is what there is to remember.

        Only where layers are split, and nothing is remembered, are there stages. Raises
        ConfigError where layers or rows do not come out even.
        """
        if num_shards("L") == 1 or iterations[-1] is not None:
            return apply_layers(iterations, x, inputs, remat)
        stages, rounds = num_shards("L"), self.virtual_stages
        count = self.microbatches or max(x.shape[0] // num_shards("B"), 1)
        _check_divisible(
            jax.tree.leaves(iterations)[0].shape[0], x.shape[0], count, stages, rounds
        )
        parted = partial(jax.tree.map, lambda x: _split_microbatches(x, count))
        dealt = jax.tree.map(lambda w: _deal_to_stages(w, rounds, stages), iterations)
        rows = parted((inputs.tokens, inputs.keys))
        idle_BTD = parted(x)[0]  # of real vectors comes no NaN, as might of zeros

        def stage(
            iterations: PyTree, x: Array, at: Int[Array, ""]
        ) -> tuple[Array, Aux]:
            """What a stage makes of the part that has come to it, its `at`th."""
            live = (at >= 0) & (at < count * rounds)
            here, keys = jax.tree.map(lambda x: x[at % count], rows)
            now = jnp.clip(at // count, 0, rounds - 1) if rounds > 1 else 0
            iterations = jax.tree.map(lambda w: w[now], iterations)
            x = jnp.where(live, x, idle_BTD)
            told = inputs._replace(tokens=here, keys=keys)
            return apply_layers(iterations, x, told, "keep_all")[:2]

        stage = remat_stage(stage, remat, rounds)
        x_UBTD, aux = _run_schedule(
            stage, dealt, parted(x), Timeline(stages, count, rounds)
        )
        return constrain(x_UBTD.swapaxes(0, 1).reshape(x.shape), "BTD"), aux, None


class Timeline(NamedTuple):
    """How parts go round: part u is in round r at stage s after r * count + u + s."""

    stages: int
    microbatches: int
    virtual_stages: int

    @property
    def iterations(self) -> int:
        """How many turns there are in all."""
        return self.microbatches * self.virtual_stages + self.stages - 1

    def sum_metrics(self, y: Float[Array, "turns L parts"]) -> Float[Array, "layers"]:
        """What was measured in all turns but idle ones, summed over parts of a batch.

        In the order of layers.
        """
        live = self.microbatches * self.virtual_stages
        busy = jnp.stack([y[s : s + live, s] for s in range(self.stages)], axis=1)
        rounds = busy.reshape(self.virtual_stages, self.microbatches, self.stages, -1)
        return rounds.sum(axis=1).reshape(-1)


def _run_schedule(
    stage: Callable[..., tuple[Array, Aux]],
    turns: PyTree,
    x: Float[Array, "U B T D"],
    plan: Timeline,
) -> tuple[Float[Array, "U B T D"], Aux]:
    """Every part through every stage, as often as there are rounds.

    At the first stage parts queue for their next round, and at last to leave.
    """
    stage_L = jnp.arange(plan.stages)
    first_L1111 = (stage_L == 0)[:, None, None, None, None]
    queue_LUBTD = jnp.where(first_L1111, x[None], jnp.zeros_like(x)[None])

    @partial(vmap_over_axes, mesh_axes("L"), in_axes=(0, 0, 0, 0, None))
    def work(turns, number, queue, x, at):
        x = jnp.where(number == 0, queue[at % plan.microbatches], x)
        return stage(turns, x, at - number)

    @partial(vmap_over_axes, mesh_axes("L"), in_axes=(0, 0, 0, None))
    def wait(number, queue, x, at):
        slot = (at - plan.stages + 1) % plan.microbatches
        comes = (number == 0) & (at >= plan.stages - 1)
        return queue.at[slot].set(jnp.where(comes, x, queue[slot]))

    def turn(carry, at):
        queue_LUBTD, x_LBTD = carry
        x_LBTD, aux = work(turns, stage_L, queue_LUBTD, x_LBTD, at)
        x_LBTD = constrain(jnp.roll(constrain(x_LBTD, "LBTD"), 1, axis=0), "LBTD")
        queue_LUBTD = wait(stage_L, queue_LUBTD, x_LBTD, at)
        return (constrain(queue_LUBTD, "LUBTD"), x_LBTD), aux

    begin = (
        constrain(queue_LUBTD, "LUBTD"),
        constrain(jnp.zeros_like(queue_LUBTD[:, 0]), "LBTD"),
    )
    (queue_LUBTD, _), aux = jax.lax.scan(turn, begin, jnp.arange(plan.iterations))
    return queue_LUBTD[0], jax.tree.map(plan.sum_metrics, aux)


def _split_microbatches(
    x: Shaped[Array, "B *dims"], count: int
) -> Shaped[Array, "U M *dims"]:
    """Part u has rows u, u + count, ..., so that each device keeps the rows it has."""
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _deal_to_stages(
    w: Shaped[Array, "layers *dims"], rounds: int, stages: int
) -> Shaped[Array, "L rounds per *dims"]:
    """Each stage's parameters of each round."""
    dealt = w.reshape(rounds, stages, -1, *w.shape[1:]).swapaxes(0, 1)
    return constrain(dealt, "L" + "_" * (dealt.ndim - 1))


def _check_divisible(
    turns: int, rows: int, count: int, stages: int, rounds: int
) -> None:
    """Refuses what does not come out even."""
    if turns % (stages * rounds):
        raise ConfigError(
            f"{turns} layers, or turns of a cycle of kinds, cannot be dealt out evenly"
            f" to {stages} stages in {rounds} rounds: change Decoder.depth, Mesh.stage"
            " or PipelineSchedule.virtual_stages."
        )
    if rows % (count * num_shards("B")):
        raise ConfigError(
            f"{rows} rows cannot be parted evenly into {count} microbatches on"
            f" {num_shards('B')} devices: change the batch or PipelineSchedule.microbatches."
        )
    if rounds > 1 and count < stages:
        raise ConfigError(
            f"{count} microbatches cannot go round {stages} stages: what comes back"
            " must find its stage free. Set PipelineSchedule.virtual_stages=1, or PipelineSchedule.microbatches"
            f" to {stages} or more."
        )
