"""Dropout as a pure function of one key a row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

EMBEDDING_SITE = 2**31  # the use of a key below the layers, beyond any layer's number


def dropout(
    x: Float[Array, "B *dims"], rate: float, keys: Key[Array, "B"] | None, site: int
) -> Float[Array, "B *dims"]:
    """`x` with a share `rate` of it zeroed and the rest scaled up; as it is sans keys.

    `site` tells apart the uses of one key. Srivastava et al. 2014, JMLR 15.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"a share of {rate} cannot be dropped: it must be in [0, 1).")
    if keys is None or rate == 0.0:
        return x

    def keep(key: Key[Array, ""]) -> Array:
        return jax.random.bernoulli(
            jax.random.fold_in(key, site), 1 - rate, x.shape[1:]
        )

    return jnp.where(jax.vmap(keep)(keys), x / (1 - rate), 0.0).astype(x.dtype)
