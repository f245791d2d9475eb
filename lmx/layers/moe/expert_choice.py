"""A mixture in which experts choose tokens, and not tokens experts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import configurable
from lmx.core.mean import Aux
from lmx.core.precision import upcast
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mlp import FeedForward
from lmx.layers.moe.capacity import compute_capacities
from lmx.layers.moe.experts import Experts
from lmx.layers.moe.router import check_top_k


@configurable
class ExpertChoice(Experts):
    """Each SwiGLU layer answers the tokens of a row that it likes best.

    All take equally many: a token has `choices` of them on average, perhaps none,
    perhaps all. Which they are depends on the tokens after it, so no such model can
    generate. Zhou et al. 2022, arXiv:2202.09368.
    """

    causal = False

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: int,
        hidden: int,
        capacity_factor: int,
        shared: Callable[..., FeedForward] | None = None,
    ):
        check_top_k("ExpertChoice", capacity_factor, experts)
        self.score = Einsum("BTD,DE->BTE", dict(D=width, E=experts), init)
        super().__init__(width, init, experts=experts, hidden=hidden, shared=shared)
        self.active_fraction = capacity_factor / experts

    def apply_routed(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        probs_BTE = jax.nn.softmax(self.score(upcast(x)), axis=-1)
        taken_BEMT = choose_tokens(
            probs_BTE, segments > 0, self.active_fraction
        ).astype(x.dtype)
        x_EBMD = jnp.einsum("BEMT,BTD->EBMD", taken_BEMT, x)
        x_EMD = rearrange(x_EBMD, "E B M D -> E (B M) D")
        y_EMD = self.apply_experts(x_EMD, jnp.matmul, self.cast_weights(x.dtype))
        y_EBMD = rearrange(y_EMD, "E (B M) D -> E B M D", B=len(x))
        weights_BEM = jnp.einsum("BEMT,BTE->BEM", taken_BEMT, probs_BTE.astype(x.dtype))
        return jnp.einsum("BEMT,EBMD,BEM->BTD", taken_BEMT, y_EBMD, weights_BEM), {}


def choose_tokens(
    probs: Float[Array, "B T E"], unpadded: Bool[Array, "B T"], fraction: float
) -> Bool[Array, "B E M T"]:
    """Which token is in which place of each expert: a `share` of the live ones."""
    T = unpadded.shape[1]
    room = compute_capacities(T, fraction)
    liked_BET = jnp.where(unpadded[:, :, None], probs, -1.0).swapaxes(1, 2)
    tokens_BEM = jax.lax.top_k(liked_BET, room[-1])[1]
    used_BM = np.arange(room[-1]) < room[:, None]
    used_BM = jnp.asarray(used_BM)[unpadded.sum(axis=1)]
    return jax.nn.one_hot(tokens_BEM, T, dtype="bool") & used_BM[:, None, :, None]
