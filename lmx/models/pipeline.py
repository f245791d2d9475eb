"""Pipeline parallelism: microbatches move through stages of layers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lmx.config.registry import Positive, configurable, require
from lmx.core.mean import Aux
from lmx.core.partitioning import constrain, mesh_axes, num_shards, vmap_over_axes
from lmx.layers.attention.kv_cache import AttentionInputs
from lmx.layers.tap import refuse_taps
from lmx.models.remat import Remat, remat_stage

# Runs iterations of a cycle, stacked over L: hidden states, auxiliary means, the cache,
# and what taps record.
ApplyLayers = Callable[
    [PyTree, Float[Array, "B T D"], AttentionInputs, Remat],
    tuple[Array, Aux, PyTree, PyTree],
]


@configurable
@dataclass(frozen=True, kw_only=True)
class PipelineSchedule:
    """GPipe, or with `virtual_stages` above 1 a circular (interleaved) schedule.

    Layer l is on stage (l // n) % stages, where n = layers / (virtual_stages * stages).
    A stage is idle in stages - 1 of microbatches * virtual_stages + stages - 1
    iterations. GPipe: Huang et al. 2018, arXiv:1811.06965. Circular: Narayanan et al.
    2021, arXiv:2104.04473, section 2.2, but with all forward passes first.

    With several virtual stages parameters are redistributed once per step, and so are
    their gradients. Embedding and head run on all stages, with the vocabulary sharded.

    Attributes:
        microbatches: parts of a batch; None: one row per device.
        virtual_stages: how often a microbatch visits each stage.
    """

    microbatches: Positive[int | None] = None
    virtual_stages: Positive[int] = 1

    def __call__(
        self,
        apply_layers: ApplyLayers,
        iterations: PyTree,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        remat: Remat,
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """Calls `apply_layers` on the other arguments, pipelined over the stages.

        Raises ConfigError where layers or rows do not divide evenly.
        """
        refuse_taps("a pipeline", "set Mesh.stage=1.")
        stages, virtual = num_shards("L"), self.virtual_stages
        count = self.microbatches or max(x.shape[0] // num_shards("B"), 1)
        timeline = Timeline(stages, count, virtual)
        timeline.check(jax.tree.leaves(iterations)[0].shape[0], x.shape[0])
        # Microbatch u has rows u, u + count, ..., so each device keeps its own rows.
        split = partial(
            jax.tree.map, lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        )
        layers = jax.tree.map(lambda w: _split_by_stage(w, virtual, stages), iterations)
        shared = split((inputs.tokens, inputs.keys))
        idle_BTD = split(x)[0]  # real hidden states, since zeros may give NaN

        def stage(layers: PyTree, x: Array, visit: Int[Array, ""]) -> tuple[Array, Aux]:
            """The layers of a stage, on its microbatch number `visit`."""
            is_busy = (visit >= 0) & (visit < count * virtual)
            tokens, keys = jax.tree.map(lambda x: x[visit % count], shared)
            now = jnp.clip(visit // count, 0, virtual - 1) if virtual > 1 else 0
            layers = jax.tree.map(lambda w: w[now], layers)
            x = jnp.where(is_busy, x, idle_BTD)
            local = inputs._replace(tokens=tokens, keys=keys)
            return apply_layers(layers, x, local, "keep_all")[:2]

        stage = remat_stage(stage, remat, virtual)
        x_UBTD, aux = _run_schedule(stage, layers, split(x), timeline)
        return constrain(x_UBTD.swapaxes(0, 1).reshape(x.shape), "BTD"), aux, None


class Timeline(NamedTuple):
    """Visit r of microbatch u to stage s is iteration r * microbatches + u + s."""

    stages: int
    microbatches: int
    virtual_stages: int

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return self.microbatches * self.virtual_stages + self.stages - 1

    def sum_metrics(
        self, y: Float[Array, "iterations L parts"]
    ) -> Float[Array, "layers"]:
        """Metrics of all busy iterations, summed over microbatches, by layer."""
        visits = self.microbatches * self.virtual_stages
        busy = jnp.stack([y[s : s + visits, s] for s in range(self.stages)], axis=1)
        shape = (self.virtual_stages, self.microbatches, self.stages, -1)
        return busy.reshape(shape).sum(axis=1).reshape(-1)

    def check(self, iterations: int, rows: int) -> None:
        """Raises ConfigError where layers or rows do not divide evenly."""
        stages, count, virtual = self
        require(
            iterations % (stages * virtual) == 0,
            f"{iterations} layers, or cycles of layers, do not divide evenly into"
            f" {stages} stages with {virtual} virtual stages each: change"
            " Decoder.depth, Mesh.stage or PipelineSchedule.virtual_stages.",
        )
        require(
            rows % (count * num_shards("B")) == 0,
            f"{rows} rows do not divide evenly into {count} microbatches on"
            f" {num_shards('B')} devices: change the batch size or"
            " PipelineSchedule.microbatches.",
        )
        require(
            virtual <= 1 or count >= stages,
            f"{count} microbatches are too few for {stages} stages: set"
            " PipelineSchedule.virtual_stages=1, or PipelineSchedule.microbatches"
            f" to {stages} or more.",
        )


def _run_schedule(
    stage: Callable[..., tuple[Array, Aux]],
    layers: PyTree,
    x: Array,
    timeline: Timeline,
) -> tuple[Array, Aux]:
    """Runs every microbatch through all stages, `virtual_stages` times.

    The first stage queues microbatches between visits, and finished ones.
    """
    stages, count, _ = timeline
    stage_L = jnp.arange(stages)
    first_L1111 = (stage_L == 0)[:, None, None, None, None]
    queue_LUBTD = jnp.where(first_L1111, x[None], jnp.zeros_like(x)[None])

    @partial(vmap_over_axes, mesh_axes("L"), in_axes=(0, 0, 0, 0, None))
    def work(layers, number, queue, x, iteration):
        x = jnp.where(number == 0, queue[iteration % count], x)
        return stage(layers, x, iteration - number)

    @partial(vmap_over_axes, mesh_axes("L"), in_axes=(0, 0, 0, None))
    def enqueue(number, queue, x, iteration):
        slot = (iteration - stages + 1) % count
        arrives = (number == 0) & (iteration >= stages - 1)
        return queue.at[slot].set(jnp.where(arrives, x, queue[slot]))

    def step(carry, iteration):
        queue_LUBTD, x_LBTD = carry
        x_LBTD, aux = work(layers, stage_L, queue_LUBTD, x_LBTD, iteration)
        x_LBTD = jnp.roll(constrain(x_LBTD, "LBTD"), 1, axis=0)  # to the next stage
        x_LBTD = constrain(x_LBTD, "LBTD")
        queue_LUBTD = enqueue(stage_L, queue_LUBTD, x_LBTD, iteration)
        return (constrain(queue_LUBTD, "LUBTD"), x_LBTD), aux

    carry = (
        constrain(queue_LUBTD, "LUBTD"),
        constrain(jnp.zeros_like(queue_LUBTD[:, 0]), "LBTD"),
    )
    (queue_LUBTD, _), aux = jax.lax.scan(step, carry, jnp.arange(timeline.iterations))
    return queue_LUBTD[0], jax.tree.map(timeline.sum_metrics, aux)


def _split_by_stage(w: Array, virtual: int, stages: int) -> Array:
    """The parameters of each stage, by virtual stage."""
    by_stage = w.reshape(virtual, stages, -1, *w.shape[1:]).swapaxes(0, 1)
    return constrain(by_stage, "L" + "_" * (by_stage.ndim - 1))
