"""Which token comes next, given the logits of all.

Each rule is a function from logits to logits, -inf at tokens that it rules out.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Bool, Float, Int, Key

from lmx.config.registry import ConfigError, configurable


@configurable
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The rules of `kept` in the order in which transformers applies them, then a draw.

    Attributes:
        temperature: 0 takes the likeliest token, 1 draws from the model's own belief.
        top_k: only so many of the likeliest tokens; None: all.
        top_p: only the fewest likeliest tokens that together have this probability.
        min_p: only tokens at least so many times as likely as the likeliest.
        typical_p: only the most typical tokens that together have this probability.
        repetition_penalty: above 1, tokens that the model sees already are less likely.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for name, holds, wanted in (
            ("temperature", self.temperature >= 0, "it must be 0 or more"),
            ("top_k", self.top_k is None or self.top_k > 0, "it must be 1 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "it must be above 0"),
        ):
            if not holds:
                raise ConfigError(f"Sampler.{name} is {getattr(self, name)}: {wanted}.")

    def __call__(
        self,
        logits: Float[Array, "B V"],
        seen: Bool[Array, "B V"],
        keys: Key[Array, "B"],
    ) -> Int[Array, "B"]:
        """One token a row, drawn with the key of the row."""
        logits = self.filter_logits(logits, seen)
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1)
        return jax.vmap(jax.random.categorical)(keys, logits)

    def filter_logits(
        self, logits: Float[Array, "B V"], seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """The logits to draw by; `seen` is True at tokens that a row has already."""
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
    """Logits of seen tokens over `penalty`, or times it where they are negative.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1; the case of negative logits is
    its released code's.
    """
    less_BV = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, less_BV, logits)


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """The k largest, and any that equal the smallest of them.

    Fan et al. 2018, arXiv:1805.04833, section 5.4.
    """
    least_B = jax.lax.top_k(logits, k)[0][:, -1]
    return jnp.where(logits < least_B[:, None], -jnp.inf, logits)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """The fewest largest that together reach p.

    Holtzman et al. 2019, arXiv:1904.09751, section 3.1.
    """
    order_BV = jnp.argsort(logits, axis=-1)
    probs_BV = jax.nn.softmax(logits, axis=-1)
    upto_BV = jnp.cumsum(jnp.take_along_axis(probs_BV, order_BV, axis=-1), axis=-1)
    kept_BV = (upto_BV > 1 - p).at[:, -1].set(True)
    rank_BV = jnp.argsort(order_BV, axis=-1)
    kept_BV = jnp.take_along_axis(kept_BV, rank_BV, axis=-1)
    return jnp.where(kept_BV, logits, -jnp.inf)


def min_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Those at least p times as likely as the likeliest.

    Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    probs_BV = jax.nn.softmax(logits, axis=-1)
    least_B1 = p * probs_BV.max(axis=-1, keepdims=True)
    return jnp.where(probs_BV < least_B1, -jnp.inf, logits)


def typical_p(logits: Float[Array, "B V"], mass: float) -> Float[Array, "B V"]:
    """Those whose surprise is nearest to the entropy, until they have that `mass`.

    Equally near ones stay together. Meister et al. 2022, arXiv:2202.00666, section 4.
    """
    log_probs_BV = jax.nn.log_softmax(logits, axis=-1)
    probs_BV = jnp.exp(log_probs_BV)
    entropy_B1 = entr(probs_BV).sum(axis=-1, keepdims=True)
    off_BV = jnp.abs(-log_probs_BV - entropy_B1)
    order_BV = jnp.argsort(off_BV, axis=-1)
    upto_BV = jnp.cumsum(jnp.take_along_axis(probs_BV, order_BV, axis=-1), axis=-1)
    last_B1 = (upto_BV < mass).sum(axis=-1, keepdims=True)
    last_B1 = jnp.minimum(last_B1, logits.shape[-1] - 1)
    most_B1 = jnp.take_along_axis(jnp.sort(off_BV, axis=-1), last_B1, axis=-1)
    return jnp.where(off_BV > most_B1, -jnp.inf, logits)
