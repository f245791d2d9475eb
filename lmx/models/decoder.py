"""A decoder-only language model: embed, `depth` residual blocks, unembed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.config.names import Execution, configurable
from lmx.core.mean import Aux
from lmx.core.precision import Precision, widened
from lmx.core.spread import kept
from lmx.layers.attention.cache import Cache
from lmx.layers.attention.context import Context, reading
from lmx.layers.attention.dot import soft_cap
from lmx.layers.attention.heads import SelfAttention
from lmx.layers.dropout import BELOW, dropout
from lmx.layers.head import Head, Untied
from lmx.layers.init import FanIn, Init, Scheme
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.position.absolute import Absolute
from lmx.layers.position.relative import Length
from lmx.models.ahead import Ahead
from lmx.models.block import Block, PreNorm
from lmx.models.layout import Cyclic, makers
from lmx.models.pipeline import Circular
from lmx.models.remat import Remat
from lmx.models.stack import Stack

configurable(Precision)


@configurable
class Decoder(nnx.Module):
    """Logits of the next token at every position, and what the layers tell the loss.

    Attributes:
        attention: of every layer, or of the layers of a cycle that repeats, as in
            `[@local/Attention, @global/Attention]`.
        mlp: likewise; a cycle of its own, beginning with layer 0 too.
        lead: the feed-forward layers of the first layers, where they are others.
        ahead: predicts further tokens, for a loss that asks (`MultiToken`).
        embed_scale: what embeddings are multiplied by.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        vocab: int,
        width: int,
        depth: int,
        attention: Cyclic[SelfAttention],
        mlp: Cyclic[FeedForward],
        lead: tuple[Callable[..., FeedForward], ...] = (),
        block: Callable[..., Block] = PreNorm,
        norm: Callable[..., Norm] = RMSNorm,
        position: Callable[..., Absolute] | None = None,
        head: Callable[..., Head] = Untied,
        ahead: Callable[..., Ahead] | None = None,
        init: Scheme = FanIn(),
        embed_scale: float = 1.0,
        logit_cap: float | None = None,
        dropout: float = 0.0,
        precision: Precision = Precision(),
        unroll: Execution[int] = 1,
        remat: Execution[Remat] = "keep_all",
        pipeline: Execution[Circular] = Circular(),
    ):
        born = Init(rngs, init, depth, precision.params)
        self.table = born.weight("VD", dict(V=vocab, D=width), into="V", role="embed")
        self.position = position and position(width, born)
        each = makers(depth, attention, mlp, lead, partial(block, width, norm=norm))
        self.stack = Stack(
            each, len(lead), born, unroll=unroll, remat=remat, pipeline=pipeline
        )
        self.norm = norm(width, born)
        self.head = head(width, vocab, born)
        self.ahead = ahead and ahead(width, born, each[-1], norm)
        self.vocab, self.logit_cap, self.dropout = vocab, logit_cap, dropout
        self.embed_scale, self.precision = embed_scale, precision

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits; by default a row is one document, and positions restart in each."""
        return self.forward(tokens, positions, segments)[0]

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Aux]:
        """Logits in at least float32, and auxiliary means stacked over layers.

        Dropout acts where there are `keys`, one a row.
        """
        x_BTD, aux = self.stream(tokens, positions, segments, keys)
        return self.logits(x_BTD), aux

    def stream(self, *inputs: Any) -> tuple[Float[Array, "B T D"], Aux]:
        """What `forward`, of the same inputs, makes logits of."""
        context = reading(*inputs)
        x_BTD, aux, _ = self.run(self.embedded(inputs[0], context), context, None)
        return self.norm(x_BTD), aux

    @property
    def limit(self) -> int | None:
        """How many tokens of a document it can see; None: as many as one likes."""
        return self.position and self.position.limit

    def cache(self, rows: int, room: int, length: Length | None = None) -> Cache:
        """An empty cache with room for that many tokens of each of `rows` texts.

        `length` is what the longest will come to, if it is not known to be `room`.
        """
        layers = self.stack.empty(rows, room, self.precision.compute_dtype)
        nothing = jnp.zeros((rows, room), jnp.int32)
        length = jnp.asarray(room if length is None else length, jnp.int32)
        return Cache(layers, nothing, nothing, jnp.zeros(rows, jnp.int32), length)

    def extend(
        self,
        past: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T V"], Cache]:
        """Logits of tokens that follow those in `past`, and the longer past.

        Segment 0 is padding, which nothing sees and which may stand anywhere. There
        must be room for the tokens: beyond it the oldest are forgotten.
        """
        here, read = past.read(positions, segments)
        context = Context(here, past.length, read)
        x_BTD = self.embedded(tokens, context)
        x_BTD, _, layers = self.run(x_BTD, context, past.layers)
        after = Cache(layers, read.positions, read.segments, read.after, past.length)
        return self.logits(self.norm(x_BTD)), after

    def embedded(
        self, tokens: Int[Array, "B T"], context: Context
    ) -> Float[Array, "B T D"]:
        """The vectors that the first layer reads."""
        x_BTD = self.table[...][tokens].astype(self.precision.compute_dtype)
        # Of the table each device has some of the width. What it looks up there goes to
        # whose rows it is of; XLA by itself would bring all rows to all devices.
        x_BTD = jnp.moveaxis(kept(jnp.moveaxis(x_BTD, -1, 0), "DBT"), 0, -1)
        x_BTD *= jnp.asarray(self.embed_scale, x_BTD.dtype)
        if self.position:
            x_BTD += self.position(context.here.positions).astype(x_BTD.dtype)
        return kept(x_BTD, "BTD")

    def run(
        self, x: Float[Array, "B T D"], context: Context, past: PyTree
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """All layers: the stream behind the last, auxiliary means, and the past."""
        return self.stack(dropout(x, self.dropout, context.keys, BELOW), context, past)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of a normed stream, in at least float32."""
        logits_BTV = kept(widened(self.head(x, self.table[...])), "BTV")
        cap = self.logit_cap
        return logits_BTV if cap is None else soft_cap(logits_BTV, cap)
