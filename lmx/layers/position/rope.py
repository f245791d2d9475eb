"""Rotary position embedding: how pairs of channels turn, and how fast.

A scheme says how fast each pair of channels turns, in radians per token; the rotation
is the same for all of them. A new scheme is a new subclass, not a new flag.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from lmx.config.registry import configurable
from lmx.core.precision import upcast
from lmx.layers.position.relative import Length, RelativePosition


@configurable
@dataclass(frozen=True, kw_only=True)
class RoPE(RelativePosition):
    """Su et al. 2021, arXiv:2104.09864, section 3.2.

    Attributes:
        base: the slowest pair turns once in about 2 * pi * base tokens.
        share: of a head's channels, the first, that turn (Black et al. 2022,
            arXiv:2204.06745, section 2.1).
        pairs: which channels turn together: p and p + P, or 2p and 2p + 1.
    """

    theta: float = 10_000.0
    rotary_fraction: float = 1.0
    layout: Literal["halves", "neighbours"] = "halves"

    def inverse_frequency(self, H: int, length: Length = 0) -> Float[Array, "P"]:
        """Radians per token of each of the P = H / 2 pairs, fastest first.

        `H` channels turn, in a call of `length` tokens.
        """
        del length
        if H % 2 or not H:
            raise ValueError(
                f"{H} channels have no pairs to rotate: make head_width (or the part of"
                " it that turns) even."
            )
        return self.theta ** (-jnp.arange(0, H, 2) / H)

    @property
    def attention_scaling(self) -> float:
        """What queries and keys are multiplied by as they turn."""
        return 1.0

    def check(self, head_dim: int) -> None:
        if not 0.0 < self.rotary_fraction <= 1.0:
            raise ValueError(
                f"RoPE.rotary_fraction is {self.rotary_fraction}: more than none of the channels turn, and"
                " 1.0 at most."
            )
        self.inverse_frequency(int(head_dim * self.rotary_fraction))

    def rotate(
        self,
        x: Float[Array, "B T N H"],
        positions: Int[Array, "B T"],
        length: Length = 0,
    ) -> Float[Array, "B T N H"]:
        """Turns every pair p of every head by position * speed[p]."""
        turning = int(x.shape[-1] * self.rotary_fraction)
        speed_P = self.inverse_frequency(
            turning, length
        )  # refuses what cannot be split below
        x_BTNH, still_BTNH = x[..., :turning], x[..., turning:]
        if self.layout == "neighbours":  # queries and keys may be reordered alike
            x_BTNH = rearrange(x_BTNH, "B T N (P two) -> B T N (two P)", two=2)
        a_BTNP, b_BTNP = jnp.split(upcast(x_BTNH), 2, axis=-1)
        speed_P = speed_P.astype(a_BTNP.dtype)
        angle_BTP = positions[:, :, None] * speed_P[None, None]
        cos_BT1P = self.attention_scaling * jnp.cos(angle_BTP)[:, :, None]
        sin_BT1P = self.attention_scaling * jnp.sin(angle_BTP)[:, :, None]
        left_BTNP = a_BTNP * cos_BT1P - b_BTNP * sin_BT1P
        right_BTNP = b_BTNP * cos_BT1P + a_BTNP * sin_BT1P
        turned = [part.astype(x.dtype) for part in (left_BTNP, right_BTNP)]
        return jnp.concatenate([*turned, still_BTNH], axis=-1)
