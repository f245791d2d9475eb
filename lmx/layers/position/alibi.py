"""Attention that fades with distance, at a rate of its own for each head."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from lmx.config.registry import configurable
from lmx.layers.mask import TokenInfo
from lmx.layers.position.relative import RelativePosition, distance


def alibi_slopes(heads: int, bias_max: float = 8.0) -> Float[Array, "N"]:
    """What a head's logits lose per token: 2^(-8/N) to 2^-8 for N heads.

    For N that is no power of two, those of the power below, and then every other one of
    the power above, as in the paper's code.
    """
    below = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-bias_max * i / below) for i in range(1, below + 1)]
    rest = [2.0 ** (-bias_max * i / (2 * below)) for i in range(1, 2 * below, 2)]
    return jnp.array([*first, *rest][:heads])


@configurable
@dataclass(frozen=True, kw_only=True)
class ALiBi(RelativePosition):
    """Press et al. 2021, arXiv:2108.12409, section 3.

    Attributes:
        steepest: the gentlest head loses 2^-steepest per token; 8 in the paper, and no
            head loses anything as it grows.
    """

    bias_max: float = 8.0

    def modify_logits(
        self,
        logits: Float[Array, "B K G T S"],
        q: Float[Array, "B T N H"],
        mask: Bool[Array, "B T S"],
        query: TokenInfo,
        key: TokenInfo,
    ) -> Float[Array, "B K G T S"]:
        slope_N = alibi_slopes(q.shape[2], self.bias_max).astype(logits.dtype)
        slope_KG = rearrange(slope_N, "(K G) -> K G", K=logits.shape[1])
        far_BTS = jnp.where(mask, distance(query, key), 0).astype(logits.dtype)
        return logits - slope_KG[None, :, :, None, None] * far_BTS[:, None, None]
