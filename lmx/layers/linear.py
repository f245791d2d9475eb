"""The one learned contraction that every projection in the library is made of."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.layers.init import Init, Role


@configurable
class Einsum(nnx.Module):
    """`y = einsum(equation, x, w)` with a learned `w`, as in `"BTD,DNH->BTNH"`.

    The equation says all there is to say about the weight: its letters that vanish
    from the output are summed over, those absent from the input are made.
    """

    def __init__(
        self,
        equation: str,
        sizes: Mapping[str, int],
        init: Init,
        role: Role = "hidden",
    ):
        x_dims, w_dims, y_dims = re.split(",|->", equation)
        into = "".join(d for d in w_dims if d not in y_dims)
        out_of = "".join(d for d in w_dims if d not in x_dims)
        self.equation = equation
        self.w = init.weight(w_dims, sizes, in_dims=into, out_dims=out_of, role=role)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.einsum(self.equation, x, self.w[...].astype(x.dtype))


@configurable
class EinsumBias(Einsum):
    """`Einsum` and a learned offset for each channel that it makes, born zero."""

    def __init__(
        self,
        equation: str,
        sizes: Mapping[str, int],
        init: Init,
        role: Role = "hidden",
    ):
        super().__init__(equation, sizes, init, role)
        made = re.split(",|->", equation)[1:]
        self.b = init.full("".join(d for d in made[1] if d in made[0]), sizes, 0.0)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = super().__call__(x)
        return y + jnp.broadcast_to(self.b[...].astype(y.dtype), y.shape)
