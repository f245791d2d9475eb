"""Multi-head latent attention: keys and values made from a few numbers per token.

DeepSeek-AI 2024, arXiv:2405.04434 (DeepSeek-V2), section 2.1.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import configurable
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.inputs import AttentionInputs, update_cache
from lmx.layers.attention.reference import attend
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import make_attention_mask
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.position.rope import RoPE


@configurable
class MLA(SelfAttention):
    """Every token is remembered by `kv_rank` + `rope_dim` numbers, for all heads.

    Half of a query's logit is with the part of a key that the latent makes, half with
    one that is turned by its position and shared by all heads (section 2.1.3). A text
    at hand is attended to with keys and values made for it; a cache is attended to as
    it is, what makes keys and values moved to the queries and to the output.

    Attributes:
        kv_rank: numbers of a token's latent, R.
        q_rank: numbers that queries are made from; None: from `x` itself.
        head_width: of the part of queries and keys that does not turn.
        rope_width: of the part that does.
        value_width: of values.
        scale: of the logits; None: 1 / sqrt(head_width + rope_width).
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: int,
        kv_rank: int,
        q_rank: int | None = None,
        head_dim: int,
        rope_dim: int,
        value_dim: int,
        position: RoPE = RoPE(),
        norm: Callable[..., Norm] = RMSNorm,
        scale: float | None = None,
        dropout: float = 0.0,
    ):
        whole = head_dim + rope_dim
        asked = dict(D=width, N=heads, H=whole)
        if q_rank is None:
            self.query = Einsum("BTD,DNH->BTNH", asked, init)
        else:
            self.query = LowRankQuery(asked | dict(R=q_rank), init, norm)
        latent = dict(D=width, R=kv_rank + rope_dim)
        self.down = Einsum("BTD,DR->BTR", latent, init)
        self.norm = norm(kv_rank, init, "R")
        made = dict(R=kv_rank, N=heads, H=head_dim + value_dim)
        self.up = Einsum("BTR,RNH->BTNH", made, init)
        back = dict(D=width, N=heads, J=value_dim)
        self.out = Einsum("BTNJ,NJD->BTD", back, init, "residual")
        position.check(rope_dim)
        self.position = position
        self.kv_rank, self.head_dim, self.rope_dim = kv_rank, head_dim, rope_dim
        self.macs_per_pair = heads * (whole + value_dim)
        self.scale = whole**-0.5 if scale is None else scale
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: AttentionInputs,
        cache: Float[Array, "B S R"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B S R"] | None]:
        """The attended values, and `past` with the latents of `x`."""
        latent_BTR = self.compress(x, inputs)
        latent_BSR, keys, after = update_cache(cache, latent_BTR, inputs)
        q_BTNH = self.query(x)
        q_BTNP = self._rotate(q_BTNH[..., self.head_dim :], inputs)
        q_BTNH = q_BTNH[..., : self.head_dim]
        queries = (q_BTNH, q_BTNP, latent_BSR[..., : self.kv_rank])
        attended = self._attend_expanded if cache is None else self._attend_absorbed
        y_BTNJ = attended(
            *queries,
            latent_BSR[:, :, None, self.kv_rank :],
            mask=make_attention_mask(inputs.tokens, keys),
            scale=self.scale,
            dropout=lambda probs: dropout(probs, self.dropout, inputs.keys, 0),
        )
        return self.out(y_BTNJ), after

    def compress(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs
    ) -> Float[Array, "B T R"]:
        """What is remembered of `x`: its normed latent, and its turned key."""
        down_BTR = self.down(x)
        c_BTR = self.norm(down_BTR[..., : self.kv_rank])
        key_BT1H = self._rotate(down_BTR[:, :, None, self.kv_rank :], inputs)
        return jnp.concatenate([c_BTR, key_BT1H[:, :, 0]], axis=-1)

    def _rotate(self, x: Array, context: AttentionInputs) -> Array:
        return self.position.rotate(x, context.tokens.positions, context.length)

    def _attend_expanded(
        self,
        q: Float[Array, "B T N H"],
        q_turned: Float[Array, "B T N P"],
        c: Float[Array, "B S R"],
        k_turned: Float[Array, "B S 1 P"],
        **how,
    ) -> Float[Array, "B T N J"]:
        """Attention to keys and values that are made from the latents."""
        made_BSNH = self.up(c)
        k_BSNH = made_BSNH[..., : self.head_dim]
        v_BSNJ = made_BSNH[..., self.head_dim :]
        shape = (*k_BSNH.shape[:3], self.rope_dim)
        k_BSNP = jnp.broadcast_to(k_turned, shape)
        return attend(
            jnp.concatenate([q, q_turned], axis=-1),
            jnp.concatenate([k_BSNH, k_BSNP], axis=-1),
            v_BSNJ,
            **how,
        )

    def _attend_absorbed(
        self,
        q: Float[Array, "B T N H"],
        q_turned: Float[Array, "B T N P"],
        c: Float[Array, "B S R"],
        k_turned: Float[Array, "B S 1 P"],
        **how,
    ) -> Float[Array, "B T N J"]:
        """The same, to the latents themselves: one key and value for all heads."""
        up_RNH = self.up.w[...].astype(q.dtype)
        up_k_RNH, up_v_RNJ = jnp.split(up_RNH, [self.head_dim], axis=-1)
        q_BTNR = jnp.einsum("BTNH,RNH->BTNR", q, up_k_RNH)
        y_BTNR = attend(
            jnp.concatenate([q_BTNR, q_turned], axis=-1),
            jnp.concatenate([c[:, :, None], k_turned], axis=-1),
            c[:, :, None],
            **how,
        )
        return jnp.einsum("BTNR,RNJ->BTNJ", y_BTNR, up_v_RNJ)

    def init_cache(self, batch_size: int, capacity: int, dtype: jnp.dtype) -> Array:
        """Room for the latents of `length` tokens."""
        return jnp.zeros((batch_size, capacity, self.kv_rank + self.rope_dim), dtype)


class LowRankQuery(nnx.Module):
    """Queries made from R normed numbers of a token (section 2.1.2)."""

    def __init__(self, sizes: Mapping[str, int], init: Init, norm: Callable[..., Norm]):
        self.down = Einsum("BTD,DR->BTR", sizes, init)
        self.norm = norm(sizes["R"], init, "R")
        self.up = Einsum("BTR,RNH->BTNH", sizes, init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        return self.up(self.norm(self.down(x)))
