"""Rotary position embedding and its context extensions.

A scheme says how fast each pair of channels turns, in radians per token; the rotation
is the same for all of them. A new scheme is a new subclass, not a new flag.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmx.config.names import configurable
from lmx.core.precision import widened


@configurable
@dataclass(frozen=True, kw_only=True)
class RoPE:
    """Su et al. 2021, arXiv:2104.09864, section 3.2."""

    base: float = 10_000.0  # the slowest pair turns once in about 2 * pi * base tokens

    def speed(self, H: int) -> Float[Array, "P"]:
        """Radians per token of each of the P = H / 2 pairs, fastest first."""
        if H % 2:
            raise ValueError(
                f"a head of width {H} has no pairs of channels to rotate: make"
                " head_width even."
            )
        return self.base ** (-jnp.arange(0, H, 2) / H)

    @property
    def amplitude(self) -> float:
        """What queries and keys are multiplied by as they turn."""
        return 1.0

    def rotate(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        """Turns channel pair (p, p + P) of every head by position * speed[p]."""
        speed_P = self.speed(x.shape[-1])  # refuses an odd width before the split does
        a_BTNP, b_BTNP = jnp.split(widened(x), 2, axis=-1)
        speed_P = speed_P.astype(a_BTNP.dtype)
        angle_BTP = positions[:, :, None] * speed_P[None, None]
        cos_BT1P = self.amplitude * jnp.cos(angle_BTP)[:, :, None]
        sin_BT1P = self.amplitude * jnp.sin(angle_BTP)[:, :, None]
        left_BTNP = a_BTNP * cos_BT1P - b_BTNP * sin_BT1P
        right_BTNP = b_BTNP * cos_BT1P + a_BTNP * sin_BT1P
        return jnp.concatenate([left_BTNP, right_BTNP], axis=-1).astype(x.dtype)


@configurable
@dataclass(frozen=True, kw_only=True)
class Interpolated(RoPE):
    """Every pair slowed `factor` times. Chen et al. 2023, arXiv:2306.15595."""

    factor: float

    def speed(self, H: int) -> Float[Array, "P"]:
        return super().speed(H) / self.factor


@configurable
@dataclass(frozen=True, kw_only=True)
class NTKAware(RoPE):
    """The base raised until the slowest pair is slowed `factor` times, the fastest not.

    Peng et al. 2023, arXiv:2309.00071, section 3.1 (due to "bloc97").
    """

    factor: float

    def speed(self, H: int) -> Float[Array, "P"]:
        if H < 4:
            raise ValueError(
                f"a head of width {H} has no slowest pair beside the fastest: NTKAware"
                " needs head_width 4 or more."
            )
        slower_P = self.factor ** (-jnp.arange(0, H, 2) / (H - 2))
        return super().speed(H) * slower_P


@configurable
@dataclass(frozen=True, kw_only=True)
class ByParts(RoPE):
    """Slow pairs interpolated, fast pairs kept: the "NTK-by-parts" half of YaRN.

    Peng et al. 2023, arXiv:2309.00071, section 3.2.
    """

    factor: float
    trained_length: int  # tokens
    slow: float = 1.0  # turns in trained_length below which a pair is interpolated
    fast: float = 32.0  # turns in trained_length above which a pair is kept

    def __post_init__(self):
        if self.slow >= self.fast:
            raise ValueError(
                f"pairs of {self.slow} turns or fewer are slow, of {self.fast} or more"
                " fast: slow must be below fast."
            )

    def speed(self, H: int) -> Float[Array, "P"]:
        speed_P = super().speed(H)
        turns_P = self.trained_length * speed_P / (2 * math.pi)
        keep_P = jnp.clip((turns_P - self.slow) / (self.fast - self.slow), 0.0, 1.0)
        return speed_P * (keep_P + (1.0 - keep_P) / self.factor)


@configurable
@dataclass(frozen=True, kw_only=True)
class YaRN(ByParts):
    """`ByParts` with a softmax temperature. Peng et al. 2023, arXiv:2309.00071.

    Its ramp is linear in turns, as in the paper; some published models ramp over the
    index of the pair instead.
    """

    @property
    def amplitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0  # section 3.4


@configurable
@dataclass(frozen=True, kw_only=True)
class Llama3(ByParts):
    """`ByParts` with the defaults of Llama 3.1.

    Grattafiori et al. 2024, arXiv:2407.21783, and its released code.
    """

    base: float = 500_000.0
    factor: float = 8.0
    trained_length: int = 8192  # tokens
    fast: float = 4.0
