"""Output heads: logits of the next token from the last hidden states."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.layers.init import Init
from lmx.layers.linear import Einsum


@configurable
class LMHead(nnx.Module):
    """Projection with its own weight."""

    def __init__(self, width: int, vocab: int, init: Init):
        self.out = Einsum("BTD,DV->BTV", dict(D=width, V=vocab), init, "head")

    def __call__(
        self, x: Float[Array, "B T D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B T V"]:
        """Logits; `embedding` is the weight of the token embedding."""
        return self.out(x)


@configurable
class TiedLMHead(LMHead):
    """Transposed token embedding. Press and Wolf 2016, arXiv:1608.05859.

    Initial logits have sqrt(width) times the standard deviation of the embedding:
    choose an initializer with a small one (`GPT2Init`, or `FanIn.embed`).
    """

    def __init__(self, width: int, vocab: int, init: Init):
        pass

    def __call__(self, x, embedding):
        return jnp.einsum("BTD,VD->BTV", x, embedding.astype(x.dtype))
