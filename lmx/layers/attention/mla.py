"""Multi-head latent attention. DeepSeek-AI 2024, arXiv:2405.04434, section 2.1."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmx.config.registry import Execution, Positive, Rate, configurable
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.backend import AttentionBackend, AttentionMask
from lmx.layers.attention.kv_cache import AttentionInputs, SlotCache, update_cache
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.dropout import dropout
from lmx.layers.init import Init
from lmx.layers.linear import Einsum, contract, slice_weight
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.rope import RoPE
from lmx.layers.tap import tap


@configurable
class MLA(SelfAttention):
    """Multi-head latent attention: caches `kv_rank` + `rope_dim` elements per token.

    A logit is the sum of a part with a key made from the latent and a part with a
    rotated key that all heads share (section 2.1.3). Without a cache, keys and values
    are expanded from the latents; with a cache, the up-projections are absorbed into
    queries and output.

    Attributes:
        kv_rank, q_rank: sizes of the latents; `q_rank` None: full-rank queries.
        head_dim, rope_dim: sizes of the parts without and with rotation.
        scale: factor of the logits; None: 1 / sqrt(head_dim + rope_dim).
        backend: implementation; all give the same numbers up to rounding.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: Positive[int],
        kv_rank: Positive[int],
        q_rank: Positive[int | None] = None,
        head_dim: Positive[int],
        rope_dim: Positive[int],
        value_dim: Positive[int],
        position: RoPE = RoPE(),
        norm: Callable[..., Norm] = RMSNorm,
        scale: float | None = None,
        dropout: Rate[float] = 0.0,
        backend: Execution[AttentionBackend] = ReferenceAttention(),
    ):
        query_dim = head_dim + rope_dim
        query_sizes = dict(D=width, N=heads, H=query_dim)
        if q_rank is None:
            self.query = Einsum("BTD,DNH->BTNH", query_sizes, init)
        else:
            self.query = LowRankQuery(query_sizes | dict(R=q_rank), init, norm)
        down_sizes = dict(D=width, R=kv_rank + rope_dim)
        self.down = Einsum("BTD,DR->BTR", down_sizes, init)
        self.norm = norm(kv_rank, init, "R")
        up_sizes = dict(R=kv_rank, N=heads, H=head_dim + value_dim)
        self.up = Einsum("BTR,RNH->BTNH", up_sizes, init)
        out_sizes = dict(D=width, N=heads, J=value_dim)
        self.out = Einsum("BTNJ,NJD->BTD", out_sizes, init, "residual")
        position.check(rope_dim)
        self.position = position
        self.kv_rank, self.head_dim, self.rope_dim = kv_rank, head_dim, rope_dim
        self.heads, self.macs_per_pair = heads, heads * (query_dim + value_dim)
        self.scale = query_dim**-0.5 if scale is None else scale
        self.dropout = dropout
        required = ["value_dim", "dropout"] if dropout else ["value_dim"]
        backend.check("MLA", query_dim, required)
        self.backend = backend

    def __call__(self, x, inputs, cache=None):
        """The projected attention output, and `cache` with the latents of `x`."""
        attend_to = self._attend_expanded if cache is None else self._attend_absorbed
        latent_BTR = self.compress(x, inputs)
        latent_BSR, key_info, cache = update_cache(cache, latent_BTR, inputs)
        q_BTNH = self.query(x)
        single_document = inputs.single_document and cache is None
        y_BTNJ = attend_to(
            q_BTNH[..., : self.head_dim],
            self._rotate(q_BTNH[..., self.head_dim :], inputs),
            latent_BSR[..., : self.kv_rank],
            latent_BSR[:, :, None, self.kv_rank :],
            mask=AttentionMask(
                inputs.tokens, key_info, single_document=single_document
            ),
            scale=self.scale,
            dropout=partial(dropout, rate=self.dropout, keys=inputs.keys, site=0),
        )
        return self.out(tap("attention.heads", y_BTNJ)), cache

    def compress(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs
    ) -> Float[Array, "B T R"]:
        """What is cached of `x`: the normalized latent, and the rotated shared key."""
        down_BTR = self.down(x)
        latent_BTR = self.norm(down_BTR[..., : self.kv_rank])
        key_BT1P = self._rotate(down_BTR[:, :, None, self.kv_rank :], inputs)
        return jnp.concatenate([latent_BTR, key_BT1P[:, :, 0]], axis=-1)

    def _rotate(self, x: Array, inputs: AttentionInputs) -> Array:
        return self.position.rotate(x, inputs.tokens.positions, inputs.length)

    def _attend_expanded(
        self, q: Array, q_rope: Array, latent: Array, k_rope: Array, **options: Any
    ) -> Array:
        """Attention to keys and values expanded from the latents."""
        k_BSNH, v_BSNJ = jnp.split(self.up(latent), [self.head_dim], axis=-1)
        k_BSNP = jnp.broadcast_to(k_rope, (*k_BSNH.shape[:3], self.rope_dim))
        return self.run_backend(
            jnp.concatenate([q, q_rope], axis=-1),
            jnp.concatenate([k_BSNH, k_BSNP], axis=-1),
            v_BSNJ,
            **options,
        )

    def _attend_absorbed(
        self, q: Array, q_rope: Array, latent: Array, k_rope: Array, **options: Any
    ) -> Array:
        """The same with the latents as the one key and value of all heads."""
        up_k = slice_weight(self.up.w, "head_dim", 0, self.head_dim)
        up_v = slice_weight(self.up.w, "head_dim", self.head_dim, None)
        q_BTNR = contract("BTNH,RNH->BTNR", q, up_k)
        y_BTNR = self.run_backend(
            jnp.concatenate([q_BTNR, q_rope], axis=-1),
            jnp.concatenate([latent[:, :, None], k_rope], axis=-1),
            latent[:, :, None],
            **options,
        )
        return contract("BTNR,RNJ->BTNJ", y_BTNR, up_v)

    def init_cache(self, size):
        """Slots for the latents of all tokens."""
        latent_R = jnp.zeros(self.kv_rank + self.rope_dim, size.dtype)
        return SlotCache.init(size, None, latent_R)


class LowRankQuery(nnx.Module):
    """Queries made from a normalized latent of size R (section 2.1.2)."""

    def __init__(self, sizes: Mapping[str, int], init: Init, norm: Callable[..., Norm]):
        self.down = Einsum("BTD,DR->BTR", sizes, init)
        self.norm = norm(sizes["R"], init, "R")
        self.up = Einsum("BTR,RNH->BTNH", sizes, init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        return self.up(self.norm(self.down(x)))
