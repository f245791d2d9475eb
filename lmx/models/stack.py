"""Many blocks, their parameters stacked, run by one scan for each cycle of kinds."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name as named
from jaxtyping import Array, Float, PyTree

from lmx.core.mean import Aux, joined
from lmx.core.spread import kept
from lmx.layers.attention.context import Context
from lmx.layers.init import Init
from lmx.models.block import Block, Past
from lmx.models.layout import Cycle, Maker, spans
from lmx.models.pipeline import Circular
from lmx.models.remat import STREAM, Remat, rematerialised


class Stack(nnx.Module):
    """Blocks made alike or in cycles, and initialised apart.

    Attributes:
        unroll: turns of a cycle per turn of the loop; all of them leave no loop.
        remat: what the backward pass need not compute again.
        pipeline: how layers that are split over stages are run.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        lead: int,
        init: Init,
        *,
        unroll: int,
        remat: Remat,
        pipeline: Circular,
    ):
        keys = jax.random.split(init.rngs.params(), len(makers))
        self.cycles = nnx.List(
            [
                Cycle(makers[span.first : span.first + span.period], span, keys, init)
                for span in spans(makers, lead)
            ]
        )
        self.depth, self.unroll, self.pipeline = len(makers), unroll, pipeline
        self.remat: Remat = remat

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: PyTree = None
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """The last block's output, auxiliary means stacked over L, and `past`."""
        auxes, pasts = [], []
        for number, cycle in enumerate(self.cycles):
            graphs, params = zip(*map(nnx.split, cycle.blocks), strict=True)
            turns = params, jnp.asarray(cycle.span.layers), past and past[number]
            run = partial(self._turns, graphs)
            x, aux, after = self.pipeline(run, turns, x, context, self.remat)
            auxes.append(aux)
            pasts.append(after)
        return x, joined(auxes), past and tuple(pasts)

    def _turns(
        self,
        graphs: Sequence[nnx.GraphDef],
        turns: PyTree,
        x: Float[Array, "B T D"],
        context: Context,
        remat: Remat,
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """Turns of a cycle, one after the other."""

        def run(kind: int, params: PyTree, x: Array, keys, past: Past | None):
            x, told = named(kept(x, "BTD"), STREAM), context._replace(keys=keys)
            return nnx.merge(graphs[kind], params)(x, told, past)

        call = rematerialised(run, remat)

        def step(x_BTD, turn):
            params, layers_C, past = turn
            auxes, pasts = [], []
            for kind in range(len(graphs)):
                keys_B = context.at(layers_C[kind]).keys
                before = past and past[kind]
                x_BTD, aux, after = call(kind, params[kind], x_BTD, keys_B, before)
                auxes.append({name: mean.stacked() for name, mean in aux.items()})
                pasts.append(after)
            return x_BTD, (joined(auxes), past and tuple(pasts))

        unroll = min(self.unroll, len(turns[1]))
        x, (aux, past) = jax.lax.scan(step, x, turns, unroll=unroll)
        return x, jax.tree.map(lambda x: x.reshape(-1), aux), past

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> PyTree:
        """What every layer remembers of texts that have not begun."""
        return tuple(cycle.empty(rows, length, dtype) for cycle in self.cycles)

    def all(self) -> Iterator[tuple[Block, int]]:
        """Each kind of block, and how many layers are of it."""
        for cycle in self.cycles:
            for block in cycle.blocks:
                yield block, cycle.span.repeats
