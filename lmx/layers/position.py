"""Position schemes: learned, sinusoidal, ALiBi and CoPE; RoPE is in `rope`."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import (
    NonNegative,
    Positive,
    at_least,
    check_argument,
    configurable,
)
from lmx.layers.init import Init
from lmx.layers.linear import contract, lookup
from lmx.layers.mask import TokenInfo

Length = int | Int[Array, ""]  # tokens of a call, or of a text once it is complete


class RelativePosition:
    """Rotates queries and keys by position, or modifies attention logits."""

    @property
    def modifies_logits(self) -> bool:
        """Whether `modify_logits` is overridden."""
        return type(self).modify_logits is not RelativePosition.modify_logits

    def check(self, head_dim: int) -> None:
        """Raises ValueError for an unsupported head size."""

    def rotate(
        self,
        x: Float[Array, "B T N H"],
        positions: Int[Array, "B T"],
        length: int | Int[Array, "B"] = 0,
    ) -> Float[Array, "B T N H"]:
        """Rotated queries or keys of texts of `length` tokens."""
        return x

    def modify_logits(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: TokenInfo,
        key: TokenInfo,
    ) -> Float[Array, "B K G T S"]:
        """Modified attention logits."""
        return logits


def alibi_slopes(heads: int, bias_max: float = 8.0) -> Float[Array, "N"]:
    """Logits lost per token by each head: 2^(-8/N) to 2^-8 for N heads.

    If N is not a power of two, every other slope of the power above completes them.
    """
    below = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-bias_max * i / below) for i in range(1, below + 1)]
    rest = [2.0 ** (-bias_max * i / (2 * below)) for i in range(1, 2 * below, 2)]
    return jnp.array([*first, *rest][:heads])


@configurable
@dataclass(frozen=True, kw_only=True)
class ALiBi(RelativePosition):
    """Linear biases, with slopes down to 2^-bias_max. Press et al. 2021, 2108.12409."""

    bias_max: NonNegative[float] = 8.0

    def modify_logits(self, logits, q, mask, query, key):
        slope_N = alibi_slopes(q.shape[2], self.bias_max).astype(logits.dtype)
        slope_KG = rearrange(slope_N, "(K G) -> K G", K=logits.shape[1])
        distance_BTS = query.positions[:, :, None] - key.positions[:, None, :]
        distance_BTS = jnp.where(mask, distance_BTS, 0).astype(logits.dtype)
        return logits - slope_KG[None, :, :, None, None] * distance_BTS[:, None, None]


def count_gates(
    gates: Float[Array, "B K G T S"], mask: Bool[Array, "B T S"], key: TokenInfo
) -> Float[Array, "B K G T S"]:
    """Sum of the gates from key s to the last visible key, ordered by `key.index`."""
    gates = jnp.where(mask[:, None, None], gates, 0.0)
    order_BS = jnp.argsort(-key.index, axis=-1)  # newest first
    inverse_BS = jnp.argsort(order_BS, axis=-1)
    newest_first = jnp.take_along_axis(gates, order_BS[:, None, None, None], axis=-1)
    sums = jnp.cumsum(newest_first, axis=-1)
    return jnp.take_along_axis(sums, inverse_BS[:, None, None, None], axis=-1)


def interpolate(
    table: Float[Array, "B K G T I"], position: Float[Array, "B K G T S"]
) -> Float[Array, "B K G T S"]:
    """Entries of `table` at fractional positions, by linear interpolation."""
    position = jnp.minimum(position, table.shape[-1] - 1)
    low = jnp.floor(position)
    fraction = position - low
    at_low, at_high = (
        jnp.take_along_axis(table, x.astype(jnp.int32), axis=-1)
        for x in (low, jnp.ceil(position))
    )
    return at_low * (1.0 - fraction) + at_high * fraction


@configurable
class CoPE(nnx.Module, RelativePosition):
    """Contextual position encoding. Golovneva et al. 2024, arXiv:2405.18719, section 4.

    The gate of a query and a key is the sigmoid of their logit. The position of a key
    is the sum of the gates from it to the query; the vector e, interpolated at that
    position, adds q e to the logit. There are `limit` vectors; higher positions use the
    last.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        init: Init,
        *,
        limit: Annotated[int, at_least(2)] = 64,
    ):
        sizes = dict(H=head_dim, I=limit)  # shared by all heads
        self.table = init.weight("HI", sizes, in_dims="H", out_dims="I")

    def modify_logits(self, logits, q, mask, query, key):
        q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=logits.shape[1])
        bias = contract("BTKGH,HI->BKGTI", q_BTKGH, self.table).astype(logits.dtype)
        positions = count_gates(jax.nn.sigmoid(logits), mask, key)
        return logits + interpolate(bias, positions)


class AbsolutePosition(nnx.Module):
    """Base class of one vector per position, below `max_length` if there is one."""

    max_length: int | None = None

    @abstractmethod
    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The vector to add to the embedding of each token."""


@configurable
class LearnedPosition(AbsolutePosition):
    """One learned vector per position. Radford et al. 2018 (GPT), section 3.1."""

    def __init__(self, width: int, init: Init, *, max_length: Positive[int]):
        sizes = dict(T=max_length, D=width)
        self.table = init.weight("TD", sizes, in_dims="T", role="embed")
        self.max_length = max_length

    def __call__(self, positions):
        T, limit = positions.shape[1], self.table.shape[0]
        check_argument(
            T <= limit,
            f"{T} tokens exceed {limit} learned positions: set"
            f" LearnedPosition.max_length to {T} or more, or use fewer tokens.",
        )
        return lookup(self.table, positions)


@configurable
class SinusoidalPosition(AbsolutePosition):
    """Sines, then cosines, of wavelengths 2 pi to 2 pi * theta. Vaswani et al. 2017."""

    def __init__(self, width: int, init: Init, *, theta: Positive[float] = 1e4):
        check_argument(
            width % 2 == 0, f"sines and cosines need an even width, not {width}."
        )
        self.width, self.theta = width, theta

    def __call__(self, positions):
        frequency_P = self.theta ** (-jnp.arange(0, self.width, 2) / self.width)
        angle_BTP = positions[:, :, None] * frequency_P[None, None]
        return jnp.concatenate([jnp.sin(angle_BTP), jnp.cos(angle_BTP)], axis=-1)
