"""Many identical blocks, their parameters stacked, run by one scan."""

from collections.abc import Callable
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from lmx.core import dims
from lmx.core.mean import Aux
from lmx.layers.attention import Context
from lmx.layers.init import Init
from lmx.models.block import Block, Past

# What the backward pass keeps of the forward pass: everything, the products of
# matrices, those without a batch dimension, or nothing but each block's input.
Remat = Literal["keep_all", "keep_dots", "keep_weight_dots", "keep_none"]
POLICIES = {
    "keep_dots": jax.checkpoint_policies.dots_saveable,
    "keep_weight_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "keep_none": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nnx.Module):
    """`depth` blocks made alike and initialised apart.

    Attributes:
        blocks: one block whose every parameter has a leading dimension L.
        unroll: blocks per turn of the loop; `depth` of them leaves no loop at all.
        remat: what the backward pass need not compute again.
    """

    def __init__(
        self,
        make: Callable[[Init], Block],
        depth: int,
        init: Init,
        *,
        unroll: int,
        remat: Remat,
    ):
        keys = jax.random.split(init.rngs.params(), depth)
        graph, _ = nnx.split(nnx.eval_shape(lambda: make(init.at(keys[0]))))
        params = jax.vmap(lambda key: nnx.split(make(init.at(key)))[1])(keys)
        self.blocks = nnx.merge(
            graph,
            jax.tree.map(
                lambda p: p.replace(p[...], axes=dims.logical("L") + p.axes),
                params,
                is_leaf=lambda p: isinstance(p, nnx.Param),
            ),
        )
        self.depth, self.unroll, self.remat = depth, unroll, remat

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None = None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        """The last block's output, auxiliary means stacked over L, and `past`."""
        graph, params = nnx.split(self.blocks)
        keys_LB = context.keys
        if keys_LB is not None:
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
            keys_LB = fold(keys_LB, jax.numpy.arange(self.depth))

        def step(x_BTD, layer):
            params, keys_B, past = layer
            y_BTD, aux, past = nnx.merge(graph, params)(
                x_BTD, context._replace(keys=keys_B), past
            )
            return y_BTD, (aux, past)

        if self.remat != "keep_all":
            step = jax.checkpoint(step, policy=POLICIES[self.remat])
        x, (aux, past) = jax.lax.scan(
            step, x, (params, keys_LB, past), unroll=self.unroll
        )
        return x, aux, past
