"""A decoder-only language model: embed, `depth` residual blocks, unembed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.config.registry import Execution, configurable
from lmx.core.mean import Aux
from lmx.core.partitioning import constrain, constrain_embedding
from lmx.core.precision import Precision, upcast
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.inputs import AttentionInputs, make_inputs
from lmx.layers.attention.kv_cache import KVCache
from lmx.layers.attention.reference import soft_cap
from lmx.layers.dropout import EMBEDDING_SITE, dropout
from lmx.layers.head import LMHead, OutputHead
from lmx.layers.init import FanIn, Init, Initializer
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.position.absolute import AbsolutePosition
from lmx.layers.position.relative import Length
from lmx.models.block import Block, PreNorm
from lmx.models.layout import Cyclic, make_layer_factories
from lmx.models.mtp import MultiTokenPrediction
from lmx.models.pipeline import PipelineSchedule
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
        first_mlps: tuple[Callable[..., FeedForward], ...] = (),
        block: Callable[..., Block] = PreNorm,
        norm: Callable[..., Norm] = RMSNorm,
        position: Callable[..., AbsolutePosition] | None = None,
        head: Callable[..., OutputHead] = LMHead,
        mtp: Callable[..., MultiTokenPrediction] | None = None,
        init: Initializer = FanIn(),
        embed_scale: float = 1.0,
        logit_cap: float | None = None,
        dropout: float = 0.0,
        precision: Precision = Precision(),
        unroll: Execution[int] = 1,
        remat: Execution[Remat] = "keep_all",
        pipeline: Execution[PipelineSchedule] = PipelineSchedule(),
    ):
        born = Init(rngs, init, depth, precision.params)
        self.embedding = born.weight(
            "VD", dict(V=vocab, D=width), in_dims="V", role="embed"
        )
        self.position = position and position(width, born)
        each = make_layer_factories(
            depth, attention, mlp, first_mlps, partial(block, width, norm=norm)
        )
        self.stack = Stack(
            each, len(first_mlps), born, unroll=unroll, remat=remat, pipeline=pipeline
        )
        self.norm = norm(width, born)
        self.head = head(width, vocab, born)
        self.mtp = mtp and mtp(width, born, each[-1], norm)
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
        x_BTD, aux = self.hidden_states(tokens, positions, segments, keys)
        return self.logits(x_BTD), aux

    def hidden_states(self, *inputs: Any) -> tuple[Float[Array, "B T D"], Aux]:
        """What `forward`, of the same inputs, makes logits of."""
        context = make_inputs(*inputs)
        x_BTD, aux, _ = self.apply_layers(self.embed(inputs[0], context), context, None)
        return self.norm(x_BTD), aux

    @property
    def max_length(self) -> int | None:
        """How many tokens of a document it can see; None: as many as one likes."""
        return self.position and self.position.max_length

    def init_cache(
        self, batch_size: int, capacity: int, final_length: Length | None = None
    ) -> KVCache:
        """An empty cache with room for that many tokens of each of `rows` texts.

        `length` is what the longest will come to, if it is not known to be `room`.
        """
        layers = self.stack.init_cache(
            batch_size, capacity, self.precision.compute_dtype
        )
        nothing = jnp.zeros((batch_size, capacity), jnp.int32)
        final_length = jnp.asarray(
            capacity if final_length is None else final_length, jnp.int32
        )
        return KVCache(
            layers, nothing, nothing, jnp.zeros(batch_size, jnp.int32), final_length
        )

    def decode(
        self,
        cache: KVCache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T V"], KVCache]:
        """Logits of tokens that follow those in `past`, and the longer past.

        Segment 0 is padding, which nothing sees and which may stand anywhere. There
        must be room for the tokens: beyond it the oldest are forgotten.
        """
        here, read = cache.advance(positions, segments)
        context = AttentionInputs(here, cache.final_length, read)
        x_BTD = self.embed(tokens, context)
        x_BTD, _, layers = self.apply_layers(x_BTD, context, cache.layers)
        after = KVCache(
            layers, read.positions, read.segments, read.new_lengths, cache.final_length
        )
        return self.logits(self.norm(x_BTD)), after

    def embed(
        self, tokens: Int[Array, "B T"], inputs: AttentionInputs
    ) -> Float[Array, "B T D"]:
        """The vectors that the first layer reads."""
        x_BTD = self.embedding[...][tokens].astype(self.precision.compute_dtype)
        x_BTD = constrain_embedding(x_BTD) * jnp.asarray(self.embed_scale, x_BTD.dtype)
        if self.position:
            x_BTD += self.position(inputs.tokens.positions).astype(x_BTD.dtype)
        return constrain(x_BTD, "BTD")

    def apply_layers(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: PyTree
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """All layers: the stream behind the last, auxiliary means, and the past."""
        return self.stack(
            dropout(x, self.dropout, inputs.keys, EMBEDDING_SITE), inputs, cache
        )

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of a normed stream, in at least float32."""
        logits_BTV = constrain(upcast(self.head(x, self.embedding[...])), "BTV")
        cap = self.logit_cap
        return logits_BTV if cap is None else soft_cap(logits_BTV, cap)
