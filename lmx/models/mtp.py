"""Multi-token prediction (MTP). DeepSeek-AI 2024, arXiv:2412.19437, section 2.2."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import Positive, configurable
from lmx.core.mean import Aux, merge_aux
from lmx.layers.attention.kv_cache import AttentionInputs, make_inputs
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.norm import Norm
from lmx.models.block import Block


class MTPBlock(nnx.Module):
    """Combines hidden states with embeddings of later tokens, equations 21 and 22."""

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
    """A chain of `modules` blocks like the decoder's last, which share its head.

    At position t, module k reads token t + k and predicts token t + k + 1.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        make_block: Callable[[Init], Block],
        norm: Callable[..., Norm],
        *,
        modules: Positive[int] = 1,
    ):
        self.modules = nnx.List(
            [MTPBlock(width, init, make_block, norm) for _ in range(modules)]
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        embeddings: Float[Array, "B T D"],
        inputs: AttentionInputs,
    ) -> tuple[Sequence[Float[Array, "B T D"]], Aux]:
        """Normalized hidden states of each module.

        Predictions beyond the end of a row or document are invalid.
        """
        states, auxes = [], []
        for shift, module in enumerate(self.modules, 1):
            x, aux = module(x, jnp.roll(embeddings, -shift, axis=1), inputs)
            states.append(module.norm(x))
            auxes.append({name: mean.expand_dims() for name, mean in aux.items()})
        return states, merge_aux(auxes)


def mtp_hidden_states(
    model: Any, *inputs: Any
) -> tuple[list[Float[Array, "B T D"]], Aux]:
    """Normalized hidden states for logits 1, 2, ... tokens ahead."""
    layer_inputs = make_inputs(*inputs)
    embeddings_BTD = model.embed(inputs[0], layer_inputs)
    x_BTD, aux, _ = model.apply_layers(embeddings_BTD, layer_inputs, None)
    states, mtp_aux = model.mtp(x_BTD, embeddings_BTD, layer_inputs)
    return [model.norm(x_BTD), *states], merge_aux([aux, mtp_aux])
