"""Residual blocks with their norms in other places than `PreNorm`'s."""

from collections.abc import Callable

from jaxtyping import Array, Float

from lmx.config.names import configurable
from lmx.core.mean import Aux
from lmx.layers.attention.context import Context
from lmx.layers.attention.heads import SelfAttention
from lmx.layers.conv import ShortConv
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm
from lmx.models.block import Block, Past


@configurable
class PostNorm(Block):
    """norm(x + f(x)). Vaswani et al. 2017, arXiv:1706.03762, section 3.1."""

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        change_BTD, past = self.attend(x, context, past)
        x = self.attention_norm(x + change_BTD)
        change_BTD, aux, past = self.feed(x, context, past)
        return self.mlp_norm(x + change_BTD), aux, past


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
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        change_BTD, past = self.attend(self.attention_norm(x), context, past)
        x += self.attention_out_norm(change_BTD)
        change_BTD, aux, past = self.feed(self.mlp_norm(x), context, past)
        return x + self.mlp_out_norm(change_BTD), aux, past


@configurable
class ReorderedNorm(Block):
    """x + norm(f(x)). OLMo Team 2024, arXiv:2501.00656, section 3.2."""

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T D"], Aux, Past | None]:
        change_BTD, past = self.attend(x, context, past)
        x += self.attention_norm(change_BTD)
        change_BTD, aux, past = self.feed(x, context, past)
        return x + self.mlp_norm(change_BTD), aux, past
