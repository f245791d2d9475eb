"""Which token comes next, given the logits of all."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lmx.config.names import configurable
from lmx.layers.attention.dot import MASKED


@configurable
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Temperature first, then top-k, then top-p, as transformers applies them.

    Attributes:
        temperature: 0 takes the likeliest token, 1 draws from the model's own belief.
        top_k: only so many of the likeliest tokens; None: all.
        top_p: only the fewest likeliest tokens that together have this probability
            (Holtzman et al. 2019, arXiv:1904.09751, section 3.1).
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(
                f"temperature is {self.temperature}: it must be 0 or more."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be 1 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: above 0 and at most 1.")

    def __call__(
        self, logits: Float[Array, "B V"], keys: Key[Array, "B"]
    ) -> Int[Array, "B"]:
        """One token a row, drawn with the key of the row."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = top_k(logits, min(self.top_k, logits.shape[-1]))
        if self.top_p < 1:
            logits = top_p(logits, self.top_p)
        return jax.vmap(jax.random.categorical)(keys, logits)


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """The logits, all below the k-th largest masked; equal ones stay together."""
    least_B = jax.lax.top_k(logits, k)[0][:, -1]
    return jnp.where(logits < least_B[:, None], MASKED, logits)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """The logits, all masked but the fewest largest that together reach p."""
    order_BV = jnp.argsort(-logits, axis=-1)
    sorted_BV = jnp.take_along_axis(logits, order_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = jnp.where(before_BV < p, sorted_BV, MASKED)
    rank_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.take_along_axis(kept_BV, rank_BV, axis=-1)
