"""The dtypes of parameters and of computation."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Literal["float64", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Dtypes of parameters and of computation.

    Softmax, norms, rotation, router, logits and loss are computed in at least float32
    (`upcast`).
    """

    params: Dtype = "float32"
    compute: Dtype | None = None  # None: float32 on CPU, bfloat16 on TPU and GPU

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations on this backend."""
        plain = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return jnp.dtype(self.compute or plain)

    @property
    def needs_x64(self) -> bool:
        """Whether `jax_enable_x64` must be set."""
        return "float64" in (self.params, self.compute)


def upcast(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Casts to at least float32; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
