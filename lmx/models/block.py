"""The residual block: attention, a feed-forward layer, and where norms stand."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from lmx.config.registry import configurable
from lmx.core.mean import Aux
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.inputs import AttentionInputs
from lmx.layers.conv import ShortConv
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm


class BlockCache(NamedTuple):
    """What a block remembers of the tokens before; the last two serve `conv`."""

    attention: PyTree
    attention_conv: Float[Array, "*L B I D"] | None
    mlp_conv: Float[Array, "*L B I D"] | None


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
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        """The stream after both changes, and `past` with what `x` adds to it."""

    def attend(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], BlockCache | None]:
        """What attention makes of its input."""
        recent = cache and cache.attention_conv
        if self.attention_conv:
            x, recent = self.attention_conv(x, inputs.tokens, recent)
        y_BTD, read = self.attention(x, inputs, cache and cache.attention)
        y_BTD = dropout(y_BTD, self.dropout, inputs.keys, 1)
        return y_BTD, cache and cache._replace(attention=read, attention_conv=recent)

    def apply_mlp(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        """What the feed-forward layer makes of its input."""
        recent = cache and cache.mlp_conv
        if self.mlp_conv:
            x, recent = self.mlp_conv(x, inputs.tokens, recent)
        y_BTD, aux = self.mlp(x, inputs.tokens.segments)
        y_BTD = dropout(y_BTD, self.dropout, inputs.keys, 2)
        return y_BTD, aux, cache and cache._replace(mlp_conv=recent)

    def init_cache(
        self, batch_size: int, capacity: int, dtype: jnp.dtype
    ) -> BlockCache:
        """Room to remember `length` tokens."""
        return BlockCache(
            self.attention.init_cache(batch_size, capacity, dtype),
            self.attention_conv and self.attention_conv.init_cache(batch_size, dtype),
            self.mlp_conv and self.mlp_conv.init_cache(batch_size, dtype),
        )


@configurable
class PreNorm(Block):
    """x + f(norm(x)). Xiong et al. 2020, arXiv:2002.04745."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        change_BTD, cache = self.attend(self.attention_norm(x), inputs, cache)
        x += change_BTD
        change_BTD, aux, cache = self.apply_mlp(self.mlp_norm(x), inputs, cache)
        return x + change_BTD, aux, cache
