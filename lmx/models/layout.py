"""Which layers are alike: what is made once, stacked, and run by one loop."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PyTree

from lmx.core import dims
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.models.block import Block

LayerFactory = Callable[[Init], Block]
Layer = TypeVar("Layer")
Cyclic = Callable[..., Layer] | tuple[Callable[..., Layer], ...]


def make_layer_factories(
    depth: int,
    attention: Cyclic[SelfAttention],
    mlp: Cyclic[FeedForward],
    first_mlps: tuple[Callable[..., FeedForward], ...],
    block: Callable[..., Block],
) -> list[LayerFactory]:
    """What makes each layer; the same object for layers of the same kind."""
    attentions = attention if isinstance(attention, tuple) else (attention,)
    mlps = mlp if isinstance(mlp, tuple) else (mlp,)
    if not attentions or not mlps:
        raise ValueError("Decoder.attention and Decoder.mlp name one layer at least.")
    if len(first_mlps) > depth:
        raise ValueError(
            f"{len(first_mlps)} layers lead {depth}: Decoder.first_mlps names as many feed-forward"
            " layers as Decoder.depth at most."
        )

    @cache
    def maker(attention: int, mlp: int, leads: bool) -> LayerFactory:
        read, feed = attentions[attention], (first_mlps if leads else mlps)[mlp]
        return lambda init: block(init, attention=read, mlp=feed)

    return [
        maker(
            i % len(attentions),
            i if i < len(first_mlps) else i % len(mlps),
            i < len(first_mlps),
        )
        for i in range(depth)
    ]


class LayerGroup(NamedTuple):
    """`repeats` * `period` layers whose kinds repeat, beginning with `first`."""

    first: int
    period: int
    repeats: int

    @property
    def layers(self) -> Int[np.ndarray, "L kinds"]:
        """The numbers of the layers, a row for each turn."""
        count = np.arange(self.period * self.repeats)
        return self.first + count.reshape(self.repeats, self.period)


def group_layers(kinds: Sequence[Hashable], first: int = 0) -> Iterator[LayerGroup]:
    """As few repetitions as `routers` are made of, the first `lead` apart."""
    for begin, end in ((0, first), (first, len(kinds))):
        part = list(kinds[begin:end])
        if not part:
            continue
        period = next(
            p
            for p in range(1, len(part) + 1)
            if all(part[i] == part[i % p] for i in range(len(part)))
        )
        repeats, rest = divmod(len(part), period)
        yield LayerGroup(begin, period, repeats)
        if rest:
            yield LayerGroup(begin + repeats * period, rest, 1)


class RepeatedBlocks(nnx.Module):
    """A few blocks of different kinds, repeated.

    Attributes:
        blocks: one of each kind; every parameter has a leading dimension L, and says in
            its metadata which `layers` of the model these are.
    """

    def __init__(
        self,
        factories: Sequence[LayerFactory],
        group: LayerGroup,
        keys: Array,
        init: Init,
    ):
        layers = group.layers.T.tolist()
        self.blocks = nnx.List(
            [
                _init_stacked(*kind, keys, init)
                for kind in zip(factories, layers, strict=True)
            ]
        )
        self.group = group

    def init_cache(self, batch_size: int, capacity: int, dtype: jnp.dtype) -> PyTree:
        """What its layers remember of texts that have not begun."""

        def stacked(x: Array) -> Array:
            return jnp.zeros((self.group.repeats, *x.shape), x.dtype)

        blocks = (
            block.init_cache(batch_size, capacity, dtype) for block in self.blocks
        )
        return tuple(jax.tree.map(stacked, past) for past in blocks)


def _init_stacked(
    make_block: LayerFactory, layers: Sequence[int], keys: Array, init: Init
) -> Block:
    """The blocks of these layers as one, parameters stacked."""
    keys = keys[jnp.array(layers)]
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_block(init.with_key(keys[0]))))
    params = jax.vmap(lambda key: nnx.split(make_block(init.with_key(key)))[1])(keys)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda p: p.replace(
                p[...], axes=dims.logical("L") + p.axes, layers=tuple(layers)
            ),
            params,
            is_leaf=lambda p: isinstance(p, nnx.Param),
        ),
    )
