"""A short causal convolution: each channel also sees the few tokens before."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmx.config.names import configurable
from lmx.layers.init import Init


def causal_conv(
    x: Float[Array, "B T D"],
    before: Float[Array, "B I D"],
    w: Float[Array, "I D"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """y[t] = x[t] + sum over i from 1 to I of w[i - 1] * x[t - i].

    `before` are the I vectors ahead of x[0]. A document does not see the one before it:
    x[t - i] counts only where positions[t] >= i.
    """
    I, T = w.shape[0], x.shape[1]
    padded_BTD = jnp.concatenate([before, x], axis=1)
    for i in range(1, I + 1):
        reach_BT1 = (positions >= i)[:, :, None]
        shifted_BTD = padded_BTD[:, I - i : I - i + T]
        x += jnp.where(reach_BT1, shifted_BTD * w[i - 1][None, None], 0)
    return x


@configurable
class ShortConv(nnx.Module):
    """`x` and a learned mix of the tokens before it, channel by channel.

    Starts as the identity. So et al. 2021, arXiv:2109.08668 (Primer), section 3, after
    the projections there; before them here, as Allen-Zhu 2025, "Physics of Language
    Models: Part 4.1" (Canon layers A and C).
    """

    def __init__(self, width: int, init: Init, *, reach: int = 3):
        if reach < 1:
            raise ValueError(f"ShortConv.reach is {reach}: it must be 1 token or more.")
        self.w = init.full("ID", dict(I=reach, D=width), 0.0)
        self.reach, self.width = reach, width

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        past: Float[Array, "B I D"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B I D"] | None]:
        """The mix, and the last tokens of `past` followed by `x`."""
        before_BID = self.empty(x.shape[0], x.dtype) if past is None else past
        y_BTD = causal_conv(x, before_BID, self.w[...].astype(x.dtype), positions)
        if past is not None:
            past = jnp.concatenate([past, x], axis=1)[:, -self.reach :]
        return y_BTD, past

    def empty(self, rows: int, dtype: jnp.dtype) -> Float[Array, "B I D"]:
        """What comes before the first token: nothing."""
        return jnp.zeros((rows, self.reach, self.width), dtype)
