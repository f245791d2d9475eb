"""Which dtype holds parameters and which one computes."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Literal["float64", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Dtypes of parameters and of the arithmetic between them.

    Softmax, norms, rotation, router and loss are taken in at least float32 (`upcast`),
    and logits are returned so.
    """

    params: Dtype = "float32"
    compute: Dtype | None = None  # None: float32 on CPU, bfloat16 on TPU and GPU

    @property
    def compute_dtype(self) -> jnp.dtype:
        """What activations are held in on this backend."""
        plain = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return jnp.dtype(self.compute or plain)

    @property
    def needs_x64(self) -> bool:
        """Whether jax must be told to allow 64 bits (`jax_enable_x64`)."""
        return "float64" in (self.params, self.compute)


def upcast(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """`x` in float32, or as it is where it is wider: a float64 run stays one."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
