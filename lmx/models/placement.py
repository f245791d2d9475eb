"""Residual blocks with their norms in other places than `PreNorm`'s."""

from collections.abc import Callable

from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.core.mean import Aux
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.inputs import AttentionInputs
from lmx.layers.conv import ShortConv
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm
from lmx.models.block import Block, BlockCache


@configurable
class PostNorm(Block):
    """norm(x + f(x)). Vaswani et al. 2017, arXiv:1706.03762, section 3.1."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        change_BTD, cache = self.attend(x, inputs, cache)
        x = self.attention_norm(x + change_BTD)
        change_BTD, aux, cache = self.apply_mlp(x, inputs, cache)
        return self.mlp_norm(x + change_BTD), aux, cache


@configurable
class SandwichNorm(Block):
    """x + norm(f(norm(x))). Ding et al. 2021, arXiv:2105.13290, section 2.3."""

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
        super().__init__(width, init, attention, mlp, norm, dropout=dropout, conv=conv)
        self.attention_out_norm = norm(width, init)
        self.mlp_out_norm = norm(width, init)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        change_BTD, cache = self.attend(self.attention_norm(x), inputs, cache)
        x += self.attention_out_norm(change_BTD)
        change_BTD, aux, cache = self.apply_mlp(self.mlp_norm(x), inputs, cache)
        return x + self.mlp_out_norm(change_BTD), aux, cache


@configurable
class ReorderedNorm(Block):
    """x + norm(f(x)). OLMo Team 2024, arXiv:2501.00656, section 3.2."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: BlockCache | None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockCache | None]:
        change_BTD, cache = self.attend(x, inputs, cache)
        x += self.attention_norm(change_BTD)
        change_BTD, aux, cache = self.apply_mlp(x, inputs, cache)
        return x + self.mlp_norm(change_BTD), aux, cache
