"""ALiBi: attention logits that fall linearly with distance, at a slope per head."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from lmx.config.registry import configurable
from lmx.layers.mask import TokenInfo
from lmx.layers.position.relative import RelativePosition, distance


def alibi_slopes(heads: int, bias_max: float = 8.0) -> Float[Array, "N"]:
    """Logits lost per token by each head: 2^(-8/N) to 2^-8 for N heads.

    If N is not a power of two: the slopes of the power below, then every other slope of
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
        bias_max: the smallest slope is 2^-bias_max; 8 in the paper. A large value
            turns the bias off.
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
        distance_BTS = jnp.where(mask, distance(query, key), 0).astype(logits.dtype)
        return logits - slope_KG[None, :, :, None, None] * distance_BTS[:, None, None]
