"""Predicting more than the next token: one further block for each token ahead."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.core.mean import Aux, merge_aux
from lmx.layers.attention.inputs import AttentionInputs, make_inputs
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.norm import Norm
from lmx.models.block import Block


class MTPBlock(nnx.Module):
    """From the stream of one module, and tokens one further ahead, to the next stream.

    DeepSeek-AI 2024, arXiv:2412.19437, section 2.2, equations 21 and 22.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        make_block: Callable[[Init], Block],
        norm: Callable[..., Norm],
    ):
        self.hidden_norm = norm(width, init)
        self.embedding_norm = norm(width, init)
        self.projection = Einsum("BTF,FD->BTD", dict(F=2 * width, D=width), init)
        self.block = make_block(init)
        self.norm = norm(width, init)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        embeddings: Float[Array, "B T D"],
        inputs: AttentionInputs,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        both = [self.hidden_norm(x), self.embedding_norm(embeddings)]
        x_BTD = self.projection(jnp.concatenate(both, axis=-1))
        x_BTD, aux, _ = self.block(x_BTD, inputs, None)
        return x_BTD, aux


@configurable
class MultiTokenPrediction(nnx.Module):
    """`modules` blocks in a row, like the decoder's last; they share its head.

    Module k reads token t + k beside the stream at t, and predicts token t + k + 1.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        make_block: Callable[[Init], Block],
        norm: Callable[..., Norm],
        *,
        modules: int = 1,
    ):
        if modules < 1:
            raise ValueError(
                f"MultiTokenPrediction.modules is {modules}: 1 at least, or no Ahead."
            )
        self.modules = nnx.List(
            [MTPBlock(width, init, make_block, norm) for _ in range(modules)]
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        embeddings: Float[Array, "B T D"],
        inputs: AttentionInputs,
    ) -> tuple[Sequence[Float[Array, "B T D"]], Aux]:
        """A normed stream for each module, made of the last one and embedded tokens.

        What follows the end of a row, or of a document, is not to be relied on.
        """
        streams, auxes = [], []
        for number, module in enumerate(self.modules, 1):
            x, aux = module(x, jnp.roll(embeddings, -number, axis=1), inputs)
            streams.append(module.norm(x))
            auxes.append({name: mean.expand_dims() for name, mean in aux.items()})
        return streams, merge_aux(auxes)


def mtp_hidden_states(
    model: Any, *inputs: Any
) -> tuple[list[Float[Array, "B T D"]], Aux]:
    """Normed streams to take logits from, of the next token and of 2, 3, ... ahead.

    `inputs` are those of `model.forward`.
    """
    context = make_inputs(*inputs)
    embedded_BTD = model.embed(inputs[0], context)
    x_BTD, aux, _ = model.run(embedded_BTD, context, None)
    further, more = model.ahead(x_BTD, embedded_BTD, context)
    return [model.norm(x_BTD), *further], merge_aux([aux, more])
