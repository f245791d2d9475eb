"""Short causal depthwise convolution over the last few tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from lmx.config.registry import Positive, configurable
from lmx.layers.attention.kv_cache import LayerCache
from lmx.layers.init import Init
from lmx.layers.linear import AnyWeight, scale_by_row
from lmx.layers.mask import TokenInfo


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConvMemory(LayerCache):
    """The last vectors that a convolution has read."""

    last: PyTree  # one array of dimensions B I D


def causal_conv(
    x: Float[Array, "B T D"],
    previous: Float[Array, "B I D"],
    w: AnyWeight | Float[Array, "I D"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """y[t] = x[t] + sum over i from 1 to I of w[i - 1] * x[t - i].

    `previous` are the I vectors before x[0]. Documents do not mix.
    """
    I, T = w.shape[0], x.shape[1]
    padded_BTD = jnp.concatenate([previous, x], axis=1)
    for i in range(1, I + 1):
        inside_BT1 = (positions >= i)[:, :, None]
        shifted_BTD = padded_BTD[:, I - i : I - i + T]
        x += jnp.where(inside_BT1, scale_by_row(shifted_BTD, w, i - 1), 0)
    return x


@configurable
class ShortConv(nnx.Module):
    """Adds a learned per-channel mix of the `reach` previous tokens, at first zero.

    So et al. 2021, arXiv:2109.08668 (Primer), section 3, before the projections as in
    Allen-Zhu 2025, "Physics of Language Models: Part 4.1" (Canon layers A and C).
    """

    def __init__(self, width: int, init: Init, *, reach: Positive[int] = 3):
        self.w = init.full("ID", dict(I=reach, D=width), 0.0)
        self.reach, self.width = reach, width

    def __call__(
        self,
        x: Float[Array, "B T D"],
        tokens: TokenInfo,
        cache: ConvMemory | None,
    ) -> tuple[Float[Array, "B T D"], ConvMemory | None]:
        """The output, and the last `reach` vectors of `cache` followed by `x`."""
        if cache is None:
            empty = self.init_cache(x.shape[0], x.dtype)
            return causal_conv(x, empty.last, self.w, tokens.positions), None
        # Padding may be anywhere: move it behind the tokens, and back afterwards.
        order_BT = jnp.argsort(~tokens.unpadded, axis=1, stable=True)
        x_BTD = _gather_tokens(x, order_BT)
        positions_BT = jnp.take_along_axis(tokens.positions, order_BT, axis=1)
        y_BTD = causal_conv(x_BTD, cache.last, self.w, positions_BT)
        all_BTD = jnp.concatenate([cache.last, x_BTD], axis=1)
        last_BI = tokens.unpadded.sum(axis=1)[:, None] + jnp.arange(self.reach)[None]
        y_BTD = _gather_tokens(y_BTD, jnp.argsort(order_BT, axis=1))
        return y_BTD, ConvMemory(_gather_tokens(all_BTD, last_BI))

    def init_cache(self, batch_size: int, dtype: jnp.dtype) -> ConvMemory:
        """Zeros, as before the first token."""
        return ConvMemory(jnp.zeros((batch_size, self.reach, self.width), dtype))


def _gather_tokens(
    x: Float[Array, "B S D"], index: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    return jnp.take_along_axis(x, index[:, :, None], axis=1)
