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
from lmx.layers.attention.heads import SelfAttention
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.models.block import Block

Maker = Callable[[Init], Block]
Layer = TypeVar("Layer")
Cyclic = Callable[..., Layer] | tuple[Callable[..., Layer], ...]


def makers(
    depth: int,
    attention: Cyclic[SelfAttention],
    mlp: Cyclic[FeedForward],
    lead: tuple[Callable[..., FeedForward], ...],
    block: Callable[..., Block],
) -> list[Maker]:
    """What makes each layer; the same object for layers of the same kind."""
    attentions = attention if isinstance(attention, tuple) else (attention,)
    mlps = mlp if isinstance(mlp, tuple) else (mlp,)
    if not attentions or not mlps:
        raise ValueError("Decoder.attention and Decoder.mlp name one layer at least.")
    if len(lead) > depth:
        raise ValueError(
            f"{len(lead)} layers lead {depth}: Decoder.lead names as many feed-forward"
            " layers as Decoder.depth at most."
        )

    @cache
    def maker(attention: int, mlp: int, leads: bool) -> Maker:
        read, feed = attentions[attention], (lead if leads else mlps)[mlp]
        return lambda init: block(init, attention=read, mlp=feed)

    return [
        maker(i % len(attentions), i if i < len(lead) else i % len(mlps), i < len(lead))
        for i in range(depth)
    ]


class Span(NamedTuple):
    """`repeats` * `period` layers whose kinds repeat, beginning with `first`."""

    first: int
    period: int
    repeats: int

    @property
    def layers(self) -> Int[np.ndarray, "L kinds"]:
        """The numbers of the layers, a row for each turn."""
        count = np.arange(self.period * self.repeats)
        return self.first + count.reshape(self.repeats, self.period)


def spans(kinds: Sequence[Hashable], lead: int = 0) -> Iterator[Span]:
    """As few repetitions as `kinds` are made of, the first `lead` apart."""
    for begin, end in ((0, lead), (lead, len(kinds))):
        part = list(kinds[begin:end])
        if not part:
            continue
        period = next(
            p
            for p in range(1, len(part) + 1)
            if all(part[i] == part[i % p] for i in range(len(part)))
        )
        repeats, rest = divmod(len(part), period)
        yield Span(begin, period, repeats)
        if rest:
            yield Span(begin + repeats * period, rest, 1)


class Cycle(nnx.Module):
    """A few blocks of different kinds, repeated.

    Attributes:
        blocks: one of each kind; every parameter has a leading dimension L, and says in
            its metadata which `layers` of the model these are.
    """

    def __init__(self, makers: Sequence[Maker], span: Span, keys: Array, init: Init):
        layers = span.layers.T.tolist()
        self.blocks = nnx.List(
            [_stacked(*kind, keys, init) for kind in zip(makers, layers, strict=True)]
        )
        self.span = span

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> PyTree:
        """What its layers remember of texts that have not begun."""

        def stacked(x: Array) -> Array:
            return jnp.zeros((self.span.repeats, *x.shape), x.dtype)

        blocks = (block.empty(rows, length, dtype) for block in self.blocks)
        return tuple(jax.tree.map(stacked, past) for past in blocks)


def _stacked(make: Maker, layers: Sequence[int], keys: Array, init: Init) -> Block:
    """The blocks of these layers as one, parameters stacked."""
    keys = keys[jnp.array(layers)]
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(init.at(keys[0]))))
    params = jax.vmap(lambda key: nnx.split(make(init.at(key)))[1])(keys)
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
