"""Rotations for texts longer than those a model was trained on."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.layers.position.relative import Length
from lmx.layers.position.rope import RoPE


@configurable
@dataclass(frozen=True, kw_only=True)
class PositionInterpolation(RoPE):
    """Every pair slowed `factor` times. Chen et al. 2023, arXiv:2306.15595."""

    factor: float

    def inverse_frequency(self, H: int, length: Length = 0) -> Float[Array, "P"]:
        return super().inverse_frequency(H, length) / self.factor


@configurable
@dataclass(frozen=True, kw_only=True)
class NTKAware(RoPE):
    """The base raised until the slowest pair is slowed `factor` times, the fastest not.

    Peng et al. 2023, arXiv:2309.00071, section 3.1 (due to "bloc97").
    """

    factor: float

    def inverse_frequency(self, H: int, length: Length = 0) -> Float[Array, "P"]:
        speed_P = super().inverse_frequency(H, length)
        return speed_P * _slow_down(H, self.ntk_factor(length))

    def ntk_factor(self, length: Length) -> float | Float[Array, ""]:
        """How many times the slowest pair is slowed in a call of `length` tokens."""
        del length
        return self.factor


@configurable
@dataclass(frozen=True, kw_only=True)
class DynamicNTK(NTKAware):
    """`NTKAware` by as much as the length of the call asks for, and not before.

    A call is a text read at once, or all that a cache will have come to: keys that are
    kept are turned once. Peng et al. 2023, arXiv:2309.00071, section 3.3 ("emozilla").
    """

    trained_length: int  # tokens

    def ntk_factor(self, length: Length) -> float | Float[Array, ""]:
        longer = jnp.maximum(length, self.trained_length) / self.trained_length
        return self.factor * longer - (self.factor - 1.0)


@configurable
@dataclass(frozen=True, kw_only=True)
class NTKByParts(RoPE):
    """Slow pairs interpolated, fast pairs kept: the "NTK-by-parts" half of YaRN.

    Peng et al. 2023, arXiv:2309.00071, section 3.2.
    """

    factor: float
    trained_length: int  # tokens
    beta_slow: float = 1.0  # turns in trained_length below which a pair is interpolated
    beta_fast: float = 32.0  # turns in trained_length above which a pair is kept

    def __post_init__(self):
        if self.beta_slow >= self.beta_fast:
            raise ValueError(
                f"pairs of {self.beta_slow} turns or fewer are slow, of {self.beta_fast} or more"
                " fast: slow must be below fast."
            )

    def inverse_frequency(self, H: int, length: Length = 0) -> Float[Array, "P"]:
        speed_P = super().inverse_frequency(H, length)
        keep_P = self.interpolation_mask(speed_P)
        return speed_P * (keep_P + (1.0 - keep_P) / self.factor)

    def interpolation_mask(
        self, inverse_frequency: Float[Array, "P"]
    ) -> Float[Array, "P"]:
        """How far from interpolated (0) to kept (1): a line in turns."""
        turns_P = self.trained_length * inverse_frequency / (2 * math.pi)
        return jnp.clip(
            (turns_P - self.beta_slow) / (self.beta_fast - self.beta_slow), 0.0, 1.0
        )


@configurable
@dataclass(frozen=True, kw_only=True)
class YaRN(NTKByParts):
    """`NTKByParts` with a softmax temperature. Peng et al. 2023, arXiv:2309.00071.

    Between slow and fast the line is one in the index of the pair, as in the code that
    came with the paper and in the models trained with it.

    Attributes:
        temperature: what queries and keys are multiplied by; None: 0.1 ln(factor) + 1,
            of section 3.4.
        whole: whether the line begins and ends at whole indices.
    """

    attention_factor: float | None = None
    truncate: bool = True

    @property
    def attention_scaling(self) -> float:
        if self.attention_factor is None:
            return 0.1 * math.log(max(self.factor, 1.0)) + 1.0
        return self.attention_factor

    def interpolation_mask(
        self, inverse_frequency: Float[Array, "P"]
    ) -> Float[Array, "P"]:
        P = len(inverse_frequency)
        low, high = (
            self._index(turns, P) for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * P - 1)
        width = high - low or 0.001
        return 1.0 - jnp.clip((jnp.arange(P) - low) / width, 0.0, 1.0)

    def _index(self, turns: float, P: int) -> float:
        """Where among the P pairs is the one that turns so often in trained_length."""
        return P * math.log(self.trained_length / (2 * math.pi * turns), self.theta)


@configurable
@dataclass(frozen=True, kw_only=True)
class Llama3RoPE(NTKByParts):
    """`NTKByParts` with the defaults of Llama 3.1.

    Grattafiori et al. 2024, arXiv:2407.21783, and its released code.
    """

    theta: float = 500_000.0
    factor: float = 8.0
    trained_length: int = 8192  # tokens
    beta_fast: float = 4.0


def _slow_down(H: int, factor: float | Float[Array, ""]) -> Float[Array, "P"]:
    """1 for the fastest pair to 1 / factor for the slowest."""
    if H < 4:
        raise ValueError(
            f"{H} channels have no slowest pair beside the fastest: NTKAware and"
            " DynamicNTK need head_width 4 or more."
        )
    return factor ** (-jnp.arange(0, H, 2) / (H - 2))
