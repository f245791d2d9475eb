"""Many blocks, their parameters stacked, run by one scan for each cycle of kinds."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.core.mean import Aux, joined
from lmx.core.spread import kept
from lmx.layers.attention.context import Context
from lmx.layers.init import Init
from lmx.models.block import Block, Past
from lmx.models.layout import Cycle, Maker, spans
from lmx.models.remat import Remat, rematerialised


class Stack(nnx.Module):
    """Blocks made alike or in cycles, and initialised apart.

    Attributes:
        unroll: turns of a cycle per turn of the loop; all of them leave no loop.
        remat: what the backward pass need not compute again.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        lead: int,
        init: Init,
        *,
        unroll: int,
        remat: Remat,
    ):
        keys = jax.random.split(init.rngs.params(), len(makers))
        self.cycles = nnx.List(
            [
                Cycle(makers[span.first : span.first + span.period], span, keys, init)
                for span in spans(makers, lead)
            ]
        )
        self.depth, self.unroll = len(makers), unroll
        self.remat: Remat = remat

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: PyTree = None
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """The last block's output, auxiliary means stacked over L, and `past`."""
        auxes, pasts = [], []
        for number, cycle in enumerate(self.cycles):
            x, aux, after = self._turns(cycle, x, context, past and past[number])
            auxes.append(aux)
            pasts.append(after)
        return x, joined(auxes), past and tuple(pasts)

    def _turns(
        self, cycle: Cycle, x: Float[Array, "B T D"], context: Context, past: PyTree
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """All turns of a cycle, one after the other."""
        graphs, params = zip(*map(nnx.split, cycle.blocks), strict=True)

        def run(kind: int, params: PyTree, x: Array, keys: Any, past: Past | None):
            block = nnx.merge(graphs[kind], params)
            return block(kept(x, "BTD"), context._replace(keys=keys), past)

        call = rematerialised(run, self.remat)

        def step(x_BTD, turn):
            params, layers_C, past = turn
            auxes, pasts = [], []
            for kind in range(cycle.span.period):
                keys_B = _folded(context.keys, layers_C[kind])
                before = past and past[kind]
                x_BTD, aux, after = call(kind, params[kind], x_BTD, keys_B, before)
                auxes.append({name: mean.stacked() for name, mean in aux.items()})
                pasts.append(after)
            return x_BTD, (joined(auxes), past and tuple(pasts))

        turns = (params, jnp.asarray(cycle.span.layers), past)
        unroll = min(self.unroll, cycle.span.repeats)
        x, (aux, past) = jax.lax.scan(step, x, turns, unroll=unroll)
        return x, jax.tree.map(lambda x: x.reshape(-1), aux), past

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> PyTree:
        """What every layer remembers of texts that have not begun."""
        return tuple(
            tuple(
                jax.tree.map(
                    lambda x, n=cycle.span.repeats: jnp.zeros((n, *x.shape), x.dtype),
                    block.empty(rows, length, dtype),
                )
                for block in cycle.blocks
            )
            for cycle in self.cycles
        )

    def all(self) -> Iterator[tuple[Block, int]]:
        """Each kind of block, and how many layers are of it."""
        for cycle in self.cycles:
            for block in cycle.blocks:
                yield block, cycle.span.repeats


def _folded(keys: Key[Array, "B"] | None, layer: Int[Array, ""]) -> Any:
    """The keys of a layer."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
