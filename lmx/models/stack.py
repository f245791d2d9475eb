"""Many blocks, their parameters stacked, run by one scan for each cycle of kinds."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as named
from jaxtyping import Array, Float, PyTree

from lmx.core.mean import Aux, merge_aux
from lmx.core.partitioning import constrain
from lmx.layers.attention.inputs import AttentionInputs
from lmx.layers.init import Init
from lmx.models.block import Block, BlockCache
from lmx.models.layout import LayerFactory, RepeatedBlocks, group_layers
from lmx.models.pipeline import PipelineSchedule
from lmx.models.remat import BLOCK_INPUT, Remat, apply_remat


class Stack(nnx.Module):
    """Blocks made alike or in cycles, and initialised apart.

    Attributes:
        unroll: turns of a cycle per turn of the loop; all of them leave no loop.
        remat: what the backward pass need not compute again.
        pipeline: how layers that are split over stages are run.
    """

    def __init__(
        self,
        factories: Sequence[LayerFactory],
        first: int,
        init: Init,
        *,
        unroll: int,
        remat: Remat,
        pipeline: PipelineSchedule,
    ):
        keys = jax.random.split(init.rngs.params(), len(factories))
        self.cycles = nnx.List(
            [
                RepeatedBlocks(
                    factories[span.first : span.first + span.period], span, keys, init
                )
                for span in group_layers(factories, first)
            ]
        )
        self.depth, self.unroll, self.pipeline = len(factories), unroll, pipeline
        self.remat: Remat = remat

    def __call__(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: PyTree = None
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """The last block's output, auxiliary means stacked over L, and `past`."""
        auxes, pasts = [], []
        for number, cycle in enumerate(self.cycles):
            graphs, params = zip(*map(nnx.split, cycle.blocks), strict=True)
            turns = params, jnp.asarray(cycle.group.layers), cache and cache[number]
            run = partial(self._scan_layers, graphs)
            x, aux, after = self.pipeline(run, turns, x, inputs, self.remat)
            auxes.append(aux)
            pasts.append(after)
        return x, merge_aux(auxes), cache and tuple(pasts)

    def _scan_layers(
        self,
        graphs: Sequence[nnx.GraphDef],
        turns: PyTree,
        x: Float[Array, "B T D"],
        context: AttentionInputs,
        remat: Remat,
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """Turns of a cycle, one after the other."""

        def run(kind: int, params: PyTree, x: Array, keys, past: BlockCache | None):
            x, told = (
                named(constrain(x, "BTD"), BLOCK_INPUT),
                context._replace(keys=keys),
            )
            return nnx.merge(graphs[kind], params)(x, told, past)

        call = apply_remat(run, remat)

        def step(x_BTD, turn):
            params, layers_C, past = turn
            auxes, pasts = [], []
            for kind in range(len(graphs)):
                keys_B = context.for_layer(layers_C[kind]).keys
                before = past and past[kind]
                x_BTD, aux, after = call(kind, params[kind], x_BTD, keys_B, before)
                auxes.append({name: mean.expand_dims() for name, mean in aux.items()})
                pasts.append(after)
            return x_BTD, (merge_aux(auxes), past and tuple(pasts))

        unroll = min(self.unroll, len(turns[1]))
        x, (aux, past) = jax.lax.scan(step, x, turns, unroll=unroll)
        return x, jax.tree.map(lambda x: x.reshape(-1), aux), past

    def init_cache(self, batch_size: int, capacity: int, dtype: jnp.dtype) -> PyTree:
        """What every layer remembers of texts that have not begun."""
        return tuple(
            cycle.init_cache(batch_size, capacity, dtype) for cycle in self.cycles
        )

    def kinds(self) -> Iterator[tuple[Block, int]]:
        """Each kind of block, and how many layers are of it."""
        for cycle in self.cycles:
            for block in cycle.blocks:
                yield block, cycle.group.repeats
