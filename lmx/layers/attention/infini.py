"""Attention within segments, and a memory of fixed size of all that came before.

Munkhdalai et al. 2024, arXiv:2404.07143 (Infini-attention), section 2.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lmx.config.names import configurable
from lmx.core.precision import widened
from lmx.layers.attention.context import Context, Read
from lmx.layers.attention.heads import KV, QKV, Attention
from lmx.layers.attention.kernel import Seen
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.mask import Place, visible
from lmx.layers.norm import Norm
from lmx.layers.position.relative import Relative
from lmx.layers.position.rope import RoPE


class Memory(NamedTuple):
    """The newest keys and values, and what older ones have become.

    A sum is one of sigma(k) [v 1]: over the segments of the newest document that are
    over, and over its last segment.
    """

    local: KV
    sums: Float[Array, "*L B 2 K H J"]


@dataclass(frozen=True)
class InSegment(Seen):
    """Which keys a query sees: those of its own segment, of so many tokens."""

    segment: int = 1

    @property
    def mask(self) -> Bool[Array, "B T S"]:
        one_BTS = apart(self.query, self.key, self.segment) == 0
        return visible(self.query, self.key) & one_BTS


def apart(query: Place, key: Place, segment: int) -> Int[Array, "B T S"]:
    """Segments from that of key s to that of query t."""
    at_BT, at_BS = query.positions // segment, key.positions // segment
    return at_BT[:, :, None] - at_BS[:, None, :]


def positive(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The paper's sigma, elu(x) + 1, without the rounding of the sum."""
    return jnp.where(x > 0.0, x + 1.0, jnp.exp(jnp.minimum(x, 0.0)))


def recalled(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K J"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N J"]:
    """The sum of `v`, each as often as q k; nothing is negative here."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=k.shape[2])
    times_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k)
    times_BKGTS *= mask[:, None, None]
    sum_BTKGJ = jnp.einsum("BKGTS,BSKJ->BTKGJ", times_BKGTS, v)
    return rearrange(sum_BTKGJ, "B T K G J -> B T (K G) J")


def looked_up(
    q: Float[Array, "B T N H"],
    sums: Float[Array, "B S K H J"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N J"]:
    """The same, where k v is summed already."""
    q_BTKGH = rearrange(q, "B T (K G) H -> B T K G H", K=sums.shape[2])
    found_BTKGJ = jnp.einsum("BTKGH,BSKHJ,BTS->BTKGJ", q_BTKGH, sums, mask)
    return rearrange(found_BTKGJ, "B T K G J -> B T (K G) J")


def mixed(
    local: Float[Array, "B T N H"],
    memory: Float[Array, "B T N J"],
    gate: Float[Array, "N"],
) -> Float[Array, "B T N H"]:
    """Equations 3 and 6; where nothing is in memory, `local` alone.

    The last channel of `memory` divides the others.
    """
    times_BTN1 = memory[..., -1:]
    known_BTN1 = times_BTN1 > 0.0
    mean_BTNH = memory[..., :-1] / jnp.where(known_BTN1, times_BTN1, 1.0)
    share_11N1 = jax.nn.sigmoid(widened(gate))[None, None, :, None]
    change_BTNH = jnp.where(known_BTN1, share_11N1 * (mean_BTNH - local), 0.0)
    return local + change_BTNH.astype(local.dtype)


@configurable
class Infini(Attention):
    """Dot products within a segment; a linear memory of the segments before it.

    Segments begin with the document. The memory knows no positions: queries and keys
    are turned for the dot products only.

    Attributes:
        segment: tokens.
        gate: sigmoid of this is the share of memory in each head at first; learned.
    """

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        segment: int,
        gate: float = 0.0,
        position: Relative | Callable[..., Relative] | None = RoPE(),
        qk_norm: Callable[..., Norm] | None = None,
        qk_norm_of: Literal["head", "heads"] = "head",
        scale: float | None = None,
        logit_cap: float | None = None,
        dropout: float = 0.0,
        qkv: Callable[..., Einsum] = Einsum,
        out: Callable[..., Einsum] = Einsum,
    ):
        if segment < 1:
            raise ValueError(
                f"Infini.segment is {segment}: a segment has 1 token at least."
            )
        super().__init__(
            width,
            init,
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            position=position,
            window=segment,
            qk_norm=qk_norm,
            qk_norm_of=qk_norm_of,
            scale=scale,
            logit_cap=logit_cap,
            dropout=dropout,
            qkv=qkv,
            out=out,
        )
        self.gate = init.full("N", dict(N=heads), gate)
        self.segment = segment

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, past: Memory | None = None
    ) -> tuple[Float[Array, "B T D"], Memory | None]:
        """The attended and recalled values, and `past` with `x` in it."""
        qkv = self.projected(x)
        local_BTNH, local = self.attended(qkv, context, past and past.local)
        memory_BTNJ, sums = self.remembered(qkv, context, past and past.sums)
        y_BTNH = mixed(local_BTNH, memory_BTNJ, self.gate[...])
        after = None if local is None or sums is None else Memory(local, sums)
        return self.out(y_BTNH), after

    def seen(self, query: Place, key: Place, whole: bool) -> Seen:
        del whole  # of a row, not of a segment
        return InSegment(query, key, segment=self.segment)

    def past(self, query: Place, key: Place) -> Bool[Array, "B T S"]:
        """Which keys a query finds in memory."""
        return visible(query, key) & (apart(query, key, self.segment) > 0)

    def remembered(
        self, qkv: QKV, context: Context, sums: Float[Array, "B 2 K H J"] | None
    ) -> tuple[Float[Array, "B T N J"], Float[Array, "B 2 K H J"] | None]:
        """What each query finds in memory, not yet divided, and the new sums."""
        here, read = context.here, context.read
        q_BTNH, k_BTKH = positive(widened(qkv.q)), positive(widened(qkv.k))
        one_BTK1 = jnp.ones_like(k_BTKH[..., :1])
        v_BTKJ = jnp.concatenate([qkv.v.astype(k_BTKH.dtype), one_BTK1], axis=-1)
        at_hand_BTNJ = recalled(q_BTNH, k_BTKH, v_BTKJ, self.past(here, here))
        if sums is None or read is None:
            return at_hand_BTNJ, None
        old, new = (self.held(read, count) for count in (read.before, read.after))
        earlier_BTNJ = looked_up(q_BTNH, sums, self.past(here, old))
        kept_BTS, added_BST = self.goes(old, new), self.goes(here, new)
        kept = jnp.einsum("BTS,BSKHJ->BTKHJ", kept_BTS, sums)
        added = jnp.einsum("BST,BTKH,BTKJ->BSKHJ", added_BST, k_BTKH, v_BTKJ)
        return at_hand_BTNJ + earlier_BTNJ, kept + added

    def held(self, read: Read, count: Int[Array, "B"]) -> Place:
        """Where the two sums stand when rows have `count` tokens."""
        newest = read.slots(count, 1)
        over = newest._replace(positions=newest.positions - self.segment)
        return Place(*map(lambda *x: jnp.concatenate(x, axis=1), over, newest))

    def goes(self, key: Place, held: Place) -> Bool[Array, "B 2 S"]:
        """Which tokens or sums belong to which of two new sums."""
        newest = Place(*(x[:, 1:] for x in held))
        is_over_B1S = apart(newest, key, self.segment) > 0
        over_121 = jnp.array([True, False])[None, :, None]
        return visible(newest, key) & (is_over_B1S == over_121)

    def empty(self, rows: int, length: int, dtype: jnp.dtype) -> Memory:
        """Room for the keys and values of a segment, and sums of nothing."""
        local = super().empty(rows, length, dtype)
        heads, head_width = self.kv_shape
        shape = (rows, 2, heads, head_width, head_width + 1)
        return Memory(local, jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)))
