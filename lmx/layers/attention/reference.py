"""Reference attention: softmax of all logits, in plain einsums, with every option."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from lmx.config.registry import configurable
from lmx.core.precision import upcast
from lmx.layers.attention.backend import AttentionBackend
from lmx.layers.tap import is_asked, tap

ModifyLogits = Callable[[Float[Array, "B K G T S"]], Float[Array, "B K G T S"]]
# Finite, so that the softmax of a fully masked row is not NaN.
MASKED = -1e30


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K J"],
    mask: Bool[Array, "B T S"],
    *,
    scale: float | None = None,
    logit_cap: float | None = None,
    modify_logits: ModifyLogits | None = None,
    sink: Float[Array, "N"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N J"]:
    """softmax(scale * q k) v, with the softmax in at least float32.

    Query head n uses key head n // G. `mask` is True where query t sees key s. `scale`
    defaults to 1 / sqrt(H). Logits are capped (`soft_cap`), then changed by
    `modify_logits`. `sink` is the logit of one more key of value zero. `dropout` acts
    on the probabilities, batch first. Vaswani et al. 2017, arXiv:1706.03762, section
    3.2.
    """
    K, H = k.shape[-2:]
    q_BTNH = q * (H**-0.5 if scale is None else scale)
    q_BTKGH = rearrange(q_BTNH, "B T (K G) H -> B T K G H", K=K)
    logits_BKGTS = upcast(jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k))
    if logit_cap is not None:
        logits_BKGTS = soft_cap(logits_BKGTS, logit_cap)
    if modify_logits is not None:
        logits_BKGTS = modify_logits(logits_BKGTS)
    logits_BKGTS = jnp.where(mask[:, None, None], logits_BKGTS, MASKED)
    logits_BKGTS = _tap("attention.logits", logits_BKGTS)
    probs_BKGTS = _tap("attention.probs", softmax(logits_BKGTS, sink)).astype(v.dtype)
    if dropout is not None:
        probs_BKGTS = dropout(probs_BKGTS)
    out_BTKGJ = jnp.einsum("BKGTS,BSKJ->BTKGJ", probs_BKGTS, v)
    return rearrange(out_BTKGJ, "B T K G J -> B T (K G) J")


def _tap(name: str, values: Float[Array, "B K G T S"]) -> Float[Array, "B K G T S"]:
    if not is_asked(name):
        return values
    values_BNTS = rearrange(values, "B K G T S -> B (K G) T S")
    return tap(name, values_BNTS).reshape(values.shape)


def softmax(
    logits: Float[Array, "B K G T S"], sink: Float[Array, "N"] | None
) -> Float[Array, "B K G T S"]:
    """Softmax over S, and over one more key of logit `sink` if given."""
    if sink is None:
        return jax.nn.softmax(logits, axis=-1)
    B, K, _, T, _ = logits.shape
    sink_KG = rearrange(sink.astype(logits.dtype), "(K G) -> K G", K=K)
    sink_BKGT1 = jnp.broadcast_to(
        sink_KG[None, :, :, None, None], (B, K, sink_KG.shape[1], T, 1)
    )
    with_sink = jnp.concatenate([logits, sink_BKGT1], axis=-1)
    return jax.nn.softmax(with_sink, axis=-1)[..., :-1]


def soft_cap(logits: Float[Array, "*dims"], cap: float) -> Float[Array, "*dims"]:
    """Cap * tanh(logits / cap). Gemma Team 2024, arXiv:2408.00118, section 2."""
    return cap * jnp.tanh(logits / cap)


@configurable
@dataclass(frozen=True)
class ReferenceAttention(AttentionBackend):
    """`attend`: supports everything everywhere, and stores all logits."""

    supports = frozenset(("position", "sink", "logit_cap", "dropout", "value_dim"))

    def __call__(self, q, k, v, mask, **options):
        return attend(q, k, v, mask.dense, **options)
