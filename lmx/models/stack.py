"""Many blocks, their parameters stacked, run by one scan for each cycle of kinds."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.core.mean import Aux, joined
from lmx.layers.attention.context import Context
from lmx.layers.init import Init
from lmx.models.block import Block, Past
from lmx.models.layout import Maker, Span, spans, stacked

# What the backward pass keeps of the forward pass: everything, the products of
# matrices, those without a batch dimension, or nothing but each block's input.
Remat = Literal["keep_all", "keep_dots", "keep_weight_dots", "keep_none"]
POLICIES = {
    "keep_dots": jax.checkpoint_policies.dots_saveable,
    "keep_weight_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "keep_none": jax.checkpoint_policies.nothing_saveable,
}


class Cycle(nnx.Module):
    """A few blocks of different kinds, repeated.

    Attributes:
        blocks: one of each kind; every parameter has a leading dimension L, and says in
            its metadata which `layers` of the model these are.
    """

    def __init__(self, makers: Sequence[Maker], span: Span, keys: Array, init: Init):
        layers = span.layers.T.tolist()
        self.blocks = nnx.List(
            [stacked(*kind, keys, init) for kind in zip(makers, layers, strict=True)]
        )
        self.span = span


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
        self.depth, self.unroll, self.remat = len(makers), unroll, remat

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
            return block(x, context._replace(keys=keys), past)

        if self.remat != "keep_all":
            run = jax.checkpoint(run, policy=POLICIES[self.remat], static_argnums=0)

        def step(x_BTD, turn):
            params, layers_C, past = turn
            auxes, pasts = [], []
            for kind in range(cycle.span.period):
                keys_B = _folded(context.keys, layers_C[kind])
                before = past and past[kind]
                x_BTD, aux, after = run(kind, params[kind], x_BTD, keys_B, before)
                auxes.append(jax.tree.map(lambda x: x[None], aux))
                pasts.append(after)
            return x_BTD, (joined(auxes), past and tuple(pasts))

        turns = (params, jnp.asarray(cycle.span.layers), past)
        unroll = min(self.unroll, cycle.span.repeats)
        x, (aux, past) = jax.lax.scan(step, x, turns, unroll=unroll)
        return x, jax.tree.map(lambda x: x.reshape(-1), aux), past

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> PyTree:
        """What every layer remembers of texts that have not begun."""
        return tuple(
            tuple(_repeated(b.empty(rows, length, dtype), cycle) for b in cycle.blocks)
            for cycle in self.cycles
        )

    def all(self) -> Iterator[tuple[Block, int]]:
        """Each kind of block, and how many layers are of it."""
        for cycle in self.cycles:
            for block in cycle.blocks:
                yield block, cycle.span.repeats


def _repeated(past: Past, cycle: Cycle) -> Past:
    repeats = cycle.span.repeats
    return jax.tree.map(lambda x: jnp.zeros((repeats, *x.shape), x.dtype), past)


def _folded(keys: Key[Array, "B"] | None, layer: Int[Array, ""]) -> Any:
    """The keys of a layer."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
