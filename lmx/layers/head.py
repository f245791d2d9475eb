"""From the last vectors to one logit for each token that could come next."""

from abc import abstractmethod

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.layers.init import Init
from lmx.layers.linear import Einsum


class OutputHead(nnx.Module):
    """Anything that turns the last vectors into logits; `table` is the embedding."""

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B T V"]:
        """One logit for each token that could come next."""


@configurable
class LMHead(OutputHead):
    """A projection of its own."""

    def __init__(self, width: int, vocab: int, init: Init):
        self.out = Einsum("BTD,DV->BTV", dict(D=width, V=vocab), init, "head")

    def __call__(
        self, x: Float[Array, "B T D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B T V"]:
        return self.out(x)


@configurable
class TiedLMHead(OutputHead):
    """The embedding, read backwards. Press and Wolf 2016, arXiv:1608.05859.

    Its logits are born with deviation sqrt(width) times that of the embedding: choose a
    scheme with a small one (`GPT2Init`, or `FanIn.embed`).
    """

    def __init__(self, width: int, vocab: int, init: Init):
        del width, vocab, init

    def __call__(
        self, x: Float[Array, "B T D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B T V"]:
        return jnp.einsum("BTD,VD->BTV", x, embedding.astype(x.dtype))
