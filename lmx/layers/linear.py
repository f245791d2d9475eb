"""Learned einsum, the building block of every projection, and the output heads."""

import re
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.layers.init import Init, Role


@configurable
class Einsum(nnx.Module):
    """`y = einsum(equation, x, w)` with a learned `w`, as in `"BTD,DNH->BTNH"`."""

    use_bias: ClassVar[bool] = False

    def __init__(
        self, equation: str, sizes: Mapping[str, int], init: Init, role: Role = "hidden"
    ):
        x_dims, w_dims, y_dims = re.split(",|->", equation)
        in_dims = "".join(d for d in w_dims if d not in y_dims)
        out_dims = "".join(d for d in w_dims if d not in x_dims)
        self.equation = equation
        self.w = init.weight(
            w_dims, sizes, in_dims=in_dims, out_dims=out_dims, role=role
        )
        if self.use_bias:
            bias_dims = "".join(d for d in y_dims if d in w_dims)
            self.b = init.full(bias_dims, sizes, 0.0)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = jnp.einsum(self.equation, x, self.w[...].astype(x.dtype))
        if self.use_bias:
            y += jnp.broadcast_to(self.b[...].astype(y.dtype), y.shape)
        return y


@configurable
class EinsumBias(Einsum):
    """`Einsum` with a bias for each output channel, initially zero."""

    use_bias = True


@configurable
class LMHead(nnx.Module):
    """Output projection with its own weight."""

    def __init__(self, width: int, vocab: int, init: Init):
        self.out = Einsum("BTD,DV->BTV", dict(D=width, V=vocab), init, "head")

    def __call__(
        self, x: Float[Array, "B T D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B T V"]:
        """Logits; `embedding` is the weight of the token embedding."""
        return self.out(x)


@configurable
class TiedLMHead(LMHead):
    """The transposed token embedding. Press and Wolf 2016, arXiv:1608.05859.

    Initial logits have sqrt(width) times the standard deviation of the embedding:
    choose an initializer with a small one (`GPT2Init`, or `FanIn.embed`).
    """

    def __init__(self, width: int, vocab: int, init: Init):
        pass

    def __call__(self, x, embedding):
        return jnp.einsum("BTD,VD->BTV", x, embedding.astype(x.dtype))
