"""The residual block: attention, a feed-forward layer, and where norms stand."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from lmx.config.names import configurable
from lmx.core.mean import Aux
from lmx.layers.attention.context import Context
from lmx.layers.attention.heads import SelfAttention
from lmx.layers.conv import ShortConv
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm


class Past(NamedTuple):
    """What a block remembers of the tokens before; the last two serve `conv`."""

    attention: PyTree
    attention_in: Float[Array, "*L B I D"] | None
    mlp_in: Float[Array, "*L B I D"] | None


class Block(nnx.Module):
    """Two residual changes to the stream; kinds differ in where norms stand.

    Attributes:
        dropout: the share of each change that is dropped.
        conv: mixes what attention and the feed-forward layer read over a few tokens.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        attention: Callable[..., SelfAttention],
        mlp: Callable[..., FeedForward],
        norm: Callable[..., Norm],
        *,
        dropout: float = 0.0,
        conv: Callable[..., ShortConv] | None = None,
    ):
        self.attention_norm = norm(width, init)
        self.attention_conv = conv and conv(width, init)
        self.attention = attention(width, init)
        self.mlp_norm = norm(width, init)
        self.mlp_conv = conv and conv(width, init)
        self.mlp = mlp(width, init)
        self.dropout = dropout

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        """The stream after both changes, and `past` with what `x` adds to it."""

    def attend(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Past | None]:
        """What attention makes of its input."""
        recent = past and past.attention_in
        if self.attention_conv:
            x, recent = self.attention_conv(x, context.here, recent)
        y_BTD, read = self.attention(x, context, past and past.attention)
        y_BTD = dropout(y_BTD, self.dropout, context.keys, 1)
        return y_BTD, past and past._replace(attention=read, attention_in=recent)

    def feed(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        """What the feed-forward layer makes of its input."""
        recent = past and past.mlp_in
        if self.mlp_conv:
            x, recent = self.mlp_conv(x, context.here, recent)
        y_BTD, aux = self.mlp(x, context.here.segments)
        y_BTD = dropout(y_BTD, self.dropout, context.keys, 2)
        return y_BTD, aux, past and past._replace(mlp_in=recent)

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> Past:
        """Room to remember `length` tokens."""
        return Past(
            self.attention.empty(rows, length, dtype),
            self.attention_conv and self.attention_conv.empty(rows, dtype),
            self.mlp_conv and self.mlp_conv.empty(rows, dtype),
        )


@configurable
class PreNorm(Block):
    """x + f(norm(x)). Xiong et al. 2020, arXiv:2002.04745."""

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        change_BTD, past = self.attend(self.attention_norm(x), context, past)
        x += change_BTD
        change_BTD, aux, past = self.feed(self.mlp_norm(x), context, past)
        return x + change_BTD, aux, past
