"""Multi-head latent attention: keys and values made from a few numbers per token.

DeepSeek-AI 2024, arXiv:2405.04434 (DeepSeek-V2), section 2.1.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.names import configurable
from lmx.layers.attention.context import Context, remember
from lmx.layers.attention.dot import attend
from lmx.layers.attention.heads import SelfAttention
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import visible
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.position.rope import RoPE


@configurable
class LatentAttention(SelfAttention):
    """Every token is remembered by `kv_rank` + `rope_width` numbers, for all heads.

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
        head_width: int,
        rope_width: int,
        value_width: int,
        position: RoPE = RoPE(),
        norm: Callable[..., Norm] = RMSNorm,
        scale: float | None = None,
        dropout: float = 0.0,
    ):
        whole = head_width + rope_width
        asked = dict(D=width, N=heads, H=whole)
        if q_rank is None:
            self.query = Einsum("BTD,DNH->BTNH", asked, init)
        else:
            self.query = LatentQuery(asked | dict(R=q_rank), init, norm)
        latent = dict(D=width, R=kv_rank + rope_width)
        self.down = Einsum("BTD,DR->BTR", latent, init)
        self.norm = norm(kv_rank, init, "R")
        made = dict(R=kv_rank, N=heads, H=head_width + value_width)
        self.up = Einsum("BTR,RNH->BTNH", made, init)
        back = dict(D=width, N=heads, J=value_width)
        self.out = Einsum("BTNJ,NJD->BTD", back, init, "residual")
        position.check(rope_width)
        self.position = position
        self.kv_rank, self.head_width, self.rope_width = kv_rank, head_width, rope_width
        self.pairs = heads * (whole + value_width)
        self.scale = whole**-0.5 if scale is None else scale
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        past: Float[Array, "B S R"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B S R"] | None]:
        """The attended values, and `past` with the latents of `x`."""
        latent_BTR = self.latent(x, context)
        latent_BSR, keys, after = remember(past, latent_BTR, context)
        q_BTNH = self.query(x)
        q_BTNP = self._turned(q_BTNH[..., self.head_width :], context)
        q_BTNH = q_BTNH[..., : self.head_width]
        inputs = (q_BTNH, q_BTNP, latent_BSR[..., : self.kv_rank])
        attended = self._made if past is None else self._absorbed
        y_BTNJ = attended(
            *inputs,
            latent_BSR[:, :, None, self.kv_rank :],
            mask=visible(context.here, keys),
            scale=self.scale,
            drop=lambda probs: dropout(probs, self.dropout, context.keys, 0),
        )
        return self.out(y_BTNJ), after

    def latent(
        self, x: Float[Array, "B T D"], context: Context
    ) -> Float[Array, "B T R"]:
        """What is remembered of `x`: its normed latent, and its turned key."""
        down_BTR = self.down(x)
        c_BTR = self.norm(down_BTR[..., : self.kv_rank])
        key_BT1H = self._turned(down_BTR[:, :, None, self.kv_rank :], context)
        return jnp.concatenate([c_BTR, key_BT1H[:, :, 0]], axis=-1)

    def _turned(self, x: Array, context: Context) -> Array:
        return self.position.rotate(x, context.here.positions, context.length)

    def _made(
        self,
        q: Float[Array, "B T N H"],
        q_turned: Float[Array, "B T N P"],
        c: Float[Array, "B S R"],
        k_turned: Float[Array, "B S 1 P"],
        **how,
    ) -> Float[Array, "B T N J"]:
        """Attention to keys and values that are made from the latents."""
        made_BSNH = self.up(c)
        k_BSNH = made_BSNH[..., : self.head_width]
        v_BSNJ = made_BSNH[..., self.head_width :]
        shape = (*k_BSNH.shape[:3], self.rope_width)
        k_BSNP = jnp.broadcast_to(k_turned, shape)
        return attend(
            jnp.concatenate([q, q_turned], axis=-1),
            jnp.concatenate([k_BSNH, k_BSNP], axis=-1),
            v_BSNJ,
            **how,
        )

    def _absorbed(
        self,
        q: Float[Array, "B T N H"],
        q_turned: Float[Array, "B T N P"],
        c: Float[Array, "B S R"],
        k_turned: Float[Array, "B S 1 P"],
        **how,
    ) -> Float[Array, "B T N J"]:
        """The same, to the latents themselves: one key and value for all heads."""
        up_RNH = self.up.w[...].astype(q.dtype)
        up_k_RNH, up_v_RNJ = jnp.split(up_RNH, [self.head_width], axis=-1)
        q_BTNR = jnp.einsum("BTNH,RNH->BTNR", q, up_k_RNH)
        y_BTNR = attend(
            jnp.concatenate([q_BTNR, q_turned], axis=-1),
            jnp.concatenate([c[:, :, None], k_turned], axis=-1),
            c[:, :, None],
            **how,
        )
        return jnp.einsum("BTNR,RNJ->BTNJ", y_BTNR, up_v_RNJ)

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> Array:
        """Room for the latents of `length` tokens."""
        return jnp.zeros((rows, length, self.kv_rank + self.rope_width), dtype)


class LatentQuery(nnx.Module):
    """Queries made from R normed numbers of a token (section 2.1.2)."""

    def __init__(self, sizes: Mapping[str, int], init: Init, norm: Callable[..., Norm]):
        self.down = Einsum("BTD,DR->BTR", sizes, init)
        self.norm = norm(sizes["R"], init, "R")
        self.up = Einsum("BTR,RNH->BTNH", sizes, init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        return self.up(self.norm(self.down(x)))
