"""Dropout as a pure function of one key per row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

EMBEDDING_SITE = 2**31  # dropout of embeddings; above every layer number


def dropout(
    x: Float[Array, "B *dims"], rate: float, keys: Key[Array, "B"] | None, site: int
) -> Float[Array, "B *dims"]:
    """Zeroes a fraction `rate` of `x` and scales up the rest; identity without keys.

    `site` separates several uses of one key. Srivastava et al. 2014, JMLR 15.
    """
    if keys is None or rate == 0.0:
        return x

    def sample(key: Key[Array, ""]) -> Array:
        key = jax.random.fold_in(key, site)
        return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(sample)(keys), x / (1 - rate), 0.0).astype(x.dtype)
