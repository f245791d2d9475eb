"""Residual block: attention and a feed-forward layer, with four norm placements."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import Rate, configurable
from lmx.core.mean import Aux
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.kv_cache import AttentionInputs, CacheSize, LayerCache
from lmx.layers.conv import ConvMemory, ShortConv
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm
from lmx.layers.tap import tap


class BlockCache(NamedTuple):
    """Cached state of a block; the last two are of `conv`."""

    attention: LayerCache
    attention_conv: ConvMemory | None
    mlp_conv: ConvMemory | None


class Block(nnx.Module):
    """Base class of blocks with two residual branches, attention and feed-forward.

    Subclasses place the norms, in `make_input` and `add_output`. `conv` acts on the
    input of each branch, `dropout` on its output.
    """

    out_norms: ClassVar[bool] = False

    def __init__(
        self,
        width: int,
        init: Init,
        attention: Callable[..., SelfAttention],
        mlp: Callable[..., FeedForward],
        norm: Callable[..., Norm],
        *,
        dropout: Rate[float] = 0.0,
        conv: Callable[..., ShortConv] | None = None,
    ):
        self.attention_norm = norm(width, init)
        self.attention_conv = conv and conv(width, init)
        self.attention = attention(width, init)
        self.mlp_norm = norm(width, init)
        self.mlp_conv = conv and conv(width, init)
        self.mlp = mlp(width, init)
        if self.out_norms:
            self.attention_out_norm = norm(width, init)
            self.mlp_out_norm = norm(width, init)
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        """The hidden states after both branches, and the updated cache."""
        tokens = inputs.tokens
        kv, attention_conv, mlp_conv = cache or (None, None, None)
        y_BTD = tap("attention.in", self.make_input(x, "attention"))
        if self.attention_conv:
            y_BTD, attention_conv = self.attention_conv(y_BTD, tokens, attention_conv)
        y_BTD, kv = self.attention(y_BTD, inputs, kv)
        y_BTD = dropout(tap("attention.out", y_BTD), self.dropout, inputs.keys, 1)
        x = tap("block.mid", self.add_output(x, y_BTD, "attention"))
        y_BTD = tap("mlp.in", self.make_input(x, "mlp"))
        if self.mlp_conv:
            y_BTD, mlp_conv = self.mlp_conv(y_BTD, tokens, mlp_conv)
        y_BTD, aux = self.mlp(y_BTD, tokens.segments)
        y_BTD = dropout(tap("mlp.out", y_BTD), self.dropout, inputs.keys, 2)
        x = tap("block.out", self.add_output(x, y_BTD, "mlp"))
        return x, aux, cache and BlockCache(kv, attention_conv, mlp_conv)

    def make_input(
        self, x: Float[Array, "B T D"], branch: str
    ) -> Float[Array, "B T D"]:
        """The input of a branch."""
        return x

    def add_output(
        self, x: Float[Array, "B T D"], y: Float[Array, "B T D"], branch: str
    ) -> Float[Array, "B T D"]:
        """The hidden states after a branch with output `y`."""
        return x + y

    def normalize(self, name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """`x`, normalized by the norm of that name."""
        return getattr(self, f"{name}_norm")(x)

    def init_cache(self, size: CacheSize) -> BlockCache:
        """An empty cache."""
        B, dtype = size.batch_size, size.dtype
        return BlockCache(
            self.attention.init_cache(size),
            self.attention_conv and self.attention_conv.init_cache(B, dtype),
            self.mlp_conv and self.mlp_conv.init_cache(B, dtype),
        )


@configurable
class PreNorm(Block):
    """x + f(norm(x)). Xiong et al. 2020, arXiv:2002.04745."""

    def make_input(self, x, branch):
        return self.normalize(branch, x)


@configurable
class PostNorm(Block):
    """norm(x + f(x)). Vaswani et al. 2017, arXiv:1706.03762, section 3.1."""

    def add_output(self, x, y, branch):
        return self.normalize(branch, x + y)


@configurable
class SandwichNorm(PreNorm):
    """x + norm(f(norm(x))). Ding et al. 2021, arXiv:2105.13290, section 2.3."""

    out_norms = True

    def add_output(self, x, y, branch):
        return x + self.normalize(f"{branch}_out", y)


@configurable
class ReorderedNorm(Block):
    """x + norm(f(x)). OLMo Team 2024, arXiv:2501.00656, section 3.2."""

    def add_output(self, x, y, branch):
        return x + self.normalize(branch, y)
