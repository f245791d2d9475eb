"""Sampling of the next token from logits.

Each rule is a function from logits to logits, with -inf at the tokens it excludes.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Bool, Float, Int, Key

from lmx.config.registry import (
    Fraction,
    Positive,
    PositiveFraction,
    Range,
    config_fields,
    configurable,
    require,
)

# Logits over a lower temperature overflow float32.
TEMPERATURES = Range("0, or 1e-6 or more", lambda x: x == 0 or 1e-6 <= x < math.inf)
PENALTIES = Range("from 1e-6 to 1e6", lambda x: 1e-6 <= x <= 1e6)


@configurable
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Applies the rules in the order of Hugging Face transformers, then samples.

    Attributes:
        temperature: 0 takes the most likely token, 1 samples from the model's
            distribution.
        top_k: number of most likely tokens to keep; None: all.
        top_p: keep the fewest most likely tokens with at least this total probability.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        typical_p: keep the most typical tokens with at least this total probability.
        repetition_penalty: above 1, tokens that the row contains are less likely.
    """

    temperature: Annotated[float, TEMPERATURES] = 0.8
    top_k: Positive[int | None] = None
    top_p: PositiveFraction[float] = 1.0
    min_p: Fraction[float] = 0.0
    typical_p: PositiveFraction[float] = 1.0
    repetition_penalty: Annotated[float, PENALTIES] = 1.0

    def __post_init__(self):
        for name, field in config_fields(Sampler).items():
            value = getattr(self, name)
            for limits in field.ranges:
                require(
                    value is None or limits.contains(value),
                    f"Sampler.{name} is {value}: it must be {limits.text}.",
                )

    def __call__(
        self,
        logits: Float[Array, "B V"],
        seen: Bool[Array, "B V"],
        keys: Key[Array, "B"],
    ) -> Int[Array, "B"]:
        """Samples one token per row, with the key of the row."""
        logits = self.filter_logits(logits, seen)
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1)
        return jax.vmap(jax.random.categorical)(keys, logits)

    def filter_logits(
        self, logits: Float[Array, "B V"], seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """The logits after all rules; `seen` is True at tokens of the row."""
        logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.temperature == 0:
            return logits
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = top_k(logits, min(self.top_k, logits.shape[-1]))
        if self.top_p < 1:
            logits = top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = min_p(logits, self.min_p)
        if self.typical_p < 1:
            logits = typical_p(logits, self.typical_p)
        return logits


def penalize_repetition(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float
) -> Float[Array, "B V"]:
    """Divides the logits of seen tokens by the penalty, or multiplies negative ones.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1; the case of negative logits is
    from its released code.
    """
    lower_BV = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, lower_BV, logits)


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Keeps the k largest logits, and all that are equal to the smallest of them.

    Fan et al. 2018, arXiv:1805.04833, section 5.4.
    """
    least_B = jax.lax.top_k(logits, k)[0][:, -1]
    return jnp.where(logits < least_B[:, None], -jnp.inf, logits)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keeps the fewest largest logits whose total probability is at least p.

    Holtzman et al. 2019, arXiv:1904.09751, section 3.1.
    """
    order_BV = jnp.argsort(logits, axis=-1)
    probs_BV = jax.nn.softmax(logits, axis=-1)
    total_BV = jnp.cumsum(jnp.take_along_axis(probs_BV, order_BV, axis=-1), axis=-1)
    kept_BV = (total_BV > 1 - p).at[:, -1].set(True)
    rank_BV = jnp.argsort(order_BV, axis=-1)
    kept_BV = jnp.take_along_axis(kept_BV, rank_BV, axis=-1)
    return jnp.where(kept_BV, logits, -jnp.inf)


def min_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keeps tokens with at least p times the probability of the most likely one.

    Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    probs_BV = jax.nn.softmax(logits, axis=-1)
    least_B1 = p * probs_BV.max(axis=-1, keepdims=True)
    return jnp.where(probs_BV < least_B1, -jnp.inf, logits)


def typical_p(logits: Float[Array, "B V"], mass: float) -> Float[Array, "B V"]:
    """Keeps tokens with surprise near the entropy, up to a total probability of `mass`.

    Tokens equally near are kept together. Meister et al. 2022, arXiv:2202.00666,
    section 4.
    """
    logprobs_BV = jax.nn.log_softmax(logits, axis=-1)
    probs_BV = jnp.exp(logprobs_BV)
    entropy_B1 = entr(probs_BV).sum(axis=-1, keepdims=True)
    distance_BV = jnp.abs(-logprobs_BV - entropy_B1)
    order_BV = jnp.argsort(distance_BV, axis=-1)
    total_BV = jnp.cumsum(jnp.take_along_axis(probs_BV, order_BV, axis=-1), axis=-1)
    last_B1 = (total_BV < mass).sum(axis=-1, keepdims=True)
    last_B1 = jnp.minimum(last_B1, logits.shape[-1] - 1)
    sorted_BV = jnp.sort(distance_BV, axis=-1)
    most_B1 = jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
    return jnp.where(distance_BV > most_B1, -jnp.inf, logits)
