"""Rotary position embedding (RoPE) and its scalings to longer texts."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from lmx.config.registry import (
    Positive,
    PositiveFraction,
    check_argument,
    configurable,
)
from lmx.core.precision import upcast
from lmx.layers.position import Length, RelativePosition


@configurable
@dataclass(frozen=True, kw_only=True)
class RoPE(RelativePosition):
    """Rotary position embedding. Su et al. 2021, arXiv:2104.09864, section 3.2.

    Attributes:
        theta: the slowest pair has a wavelength of about 2 * pi * theta tokens.
        rotary_fraction: fraction of a head's channels, the first ones, that rotate.
        layout: which channels form a pair: p and p + P, or 2p and 2p + 1.
    """

    theta: Positive[float] = 10_000.0
    rotary_fraction: PositiveFraction[float] = 1.0
    layout: Literal["split", "interleaved"] = "split"

    def inverse_frequency(self, H: int, length: Length = 0) -> Float[Array, "P"]:
        """Radians per token of each of the H / 2 pairs in a text of `length` tokens."""
        check_argument(
            H > 0 and H % 2 == 0,
            f"RoPE cannot rotate {H} channels in pairs: make head_dim (or the part"
            " of it that rotates) even.",
        )
        return self.theta ** (-jnp.arange(0, H, 2) / H)

    @property
    def attention_scaling(self) -> float:
        """Factor on rotated queries and keys."""
        return 1.0

    def check(self, head_dim):
        self.inverse_frequency(int(head_dim * self.rotary_fraction))

    def rotate(self, x, positions, length=0):
        """Rotates pair p of every head by position * inverse_frequency[p]."""
        rotary_dim = int(x.shape[-1] * self.rotary_fraction)
        frequency = partial(self.inverse_frequency, rotary_dim)
        if isinstance(length, int):
            frequency_BP = frequency(length)[None]
        else:
            frequency_BP = jax.vmap(frequency)(length)
        x_BTNH, rest_BTNH = x[..., :rotary_dim], x[..., rotary_dim:]
        if self.layout == "interleaved":  # the same reordering of queries and keys
            x_BTNH = rearrange(x_BTNH, "B T N (P two) -> B T N (two P)", two=2)
        a_BTNP, b_BTNP = jnp.split(upcast(x_BTNH), 2, axis=-1)
        frequency_BP = frequency_BP.astype(a_BTNP.dtype)
        angle_BTP = positions[:, :, None] * frequency_BP[:, None]
        cos_BT1P = self.attention_scaling * jnp.cos(angle_BTP)[:, :, None]
        sin_BT1P = self.attention_scaling * jnp.sin(angle_BTP)[:, :, None]
        left_BTNP = a_BTNP * cos_BT1P - b_BTNP * sin_BT1P
        right_BTNP = b_BTNP * cos_BT1P + a_BTNP * sin_BT1P
        rotated = [part.astype(x.dtype) for part in (left_BTNP, right_BTNP)]
        return jnp.concatenate([*rotated, rest_BTNH], axis=-1)


@configurable
@dataclass(frozen=True, kw_only=True)
class PositionInterpolation(RoPE):
    """All frequencies divided by `factor`. Chen et al. 2023, arXiv:2306.15595."""

    factor: Positive[float]

    def inverse_frequency(self, H, length=0):
        return super().inverse_frequency(H, length) / self.factor


@configurable
@dataclass(frozen=True, kw_only=True)
class NTKAware(RoPE):
    """A larger theta, which slows the slowest pair by `factor` and the fastest not.

    Peng et al. 2023, arXiv:2309.00071, section 3.1 (due to "bloc97").
    """

    factor: Positive[float]

    def inverse_frequency(self, H, length=0):
        frequency_P = super().inverse_frequency(H, length)
        check_argument(
            H >= 4,
            f"NTKAware and DynamicNTK need 4 or more rotating channels, not {H}:"
            " raise head_dim.",
        )
        slowdown_P = self.ntk_factor(length) ** (-jnp.arange(0, H, 2) / (H - 2))
        return frequency_P * slowdown_P

    def ntk_factor(self, length: Length) -> float | Float[Array, ""]:
        """Slowdown of the slowest pair in a text of `length` tokens."""
        return self.factor


@configurable
@dataclass(frozen=True, kw_only=True)
class DynamicNTK(NTKAware):
    """`NTKAware` with a factor that grows with the text beyond `trained_length`.

    The length is that of the call, or of the complete text of a cache. Peng et al.
    2023, arXiv:2309.00071, section 3.3 ("emozilla").
    """

    trained_length: Positive[int]  # tokens

    def ntk_factor(self, length):
        ratio = jnp.maximum(length, self.trained_length) / self.trained_length
        return self.factor * ratio - (self.factor - 1.0)


@configurable
@dataclass(frozen=True, kw_only=True)
class NTKByParts(RoPE):
    """Slow pairs interpolated, fast pairs unchanged. Peng et al. 2023, section 3.2."""

    factor: Positive[float]
    trained_length: Positive[int]  # tokens
    beta_slow: Positive[float] = 1.0  # rotations in trained_length, interpolated below
    beta_fast: Positive[float] = 32.0  # rotations in trained_length, unchanged above

    def __post_init__(self):
        check_argument(
            self.beta_slow < self.beta_fast,
            f"beta_slow is {self.beta_slow} and beta_fast {self.beta_fast}:"
            " beta_slow must be below beta_fast.",
        )

    def inverse_frequency(self, H, length=0):
        frequency_P = super().inverse_frequency(H, length)
        keep_P = self.interpolation_mask(frequency_P)
        return frequency_P * (keep_P + (1.0 - keep_P) / self.factor)

    def interpolation_mask(
        self, inverse_frequency: Float[Array, "P"]
    ) -> Float[Array, "P"]:
        """0 where a pair is interpolated, 1 where unchanged, linear in rotations."""
        rotations_P = self.trained_length * inverse_frequency / (2 * math.pi)
        ramp_P = (rotations_P - self.beta_slow) / (self.beta_fast - self.beta_slow)
        return jnp.clip(ramp_P, 0.0, 1.0)


@configurable
@dataclass(frozen=True, kw_only=True)
class YaRN(NTKByParts):
    """`NTKByParts` with a softmax temperature. Peng et al. 2023, arXiv:2309.00071.

    The ramp is linear in the index of the pair, as in the paper's code and the models
    trained with it.

    Attributes:
        attention_factor: factor on queries and keys; None: 0.1 ln(factor) + 1, of
            section 3.4.
        truncate: whether the ramp starts and ends at integer indices.
    """

    attention_factor: Positive[float | None] = None
    truncate: bool = True

    @property
    def attention_scaling(self) -> float:
        if self.attention_factor is None:
            return 0.1 * math.log(max(self.factor, 1.0)) + 1.0
        return self.attention_factor

    def interpolation_mask(self, inverse_frequency):
        P = len(inverse_frequency)
        low, high = (  # indices of the pairs with these rotations in trained_length
            P * math.log(self.trained_length / (2 * math.pi * rotations), self.theta)
            for rotations in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * P - 1)
        width = high - low or 0.001
        return 1.0 - jnp.clip((jnp.arange(P) - low) / width, 0.0, 1.0)


@configurable
@dataclass(frozen=True, kw_only=True)
class Llama3RoPE(NTKByParts):
    """`NTKByParts` as in Llama 3.1. Grattafiori et al. 2024, arXiv:2407.21783."""

    theta: Positive[float] = 500_000.0
    factor: Positive[float] = 8.0
    trained_length: Positive[int] = 8192
    beta_fast: Positive[float] = 4.0
