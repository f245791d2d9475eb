"""Decoder-only language model: embedding, `depth` residual blocks and output head."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.config.registry import Execution, Positive, Range, Rate, configurable
from lmx.core.mean import Aux
from lmx.core.partitioning import constrain, constrain_embedding
from lmx.core.precision import Precision, upcast
from lmx.layers.attention.attention import SelfAttention
from lmx.layers.attention.kv_cache import (
    AttentionInputs,
    CacheSize,
    KVCache,
    make_inputs,
)
from lmx.layers.attention.reference import soft_cap
from lmx.layers.dropout import EMBEDDING_SITE, dropout
from lmx.layers.init import FanIn, Init, Initializer
from lmx.layers.linear import AnyWeight, LMHead, lookup
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.position import AbsolutePosition, Length
from lmx.layers.tap import tap
from lmx.models.block import Block, PreNorm
from lmx.models.mtp import MultiTokenPrediction
from lmx.models.pipeline import PipelineSchedule
from lmx.models.remat import Remat
from lmx.models.stack import Cyclic, Stack, plan_layers

configurable(Precision)


@configurable
class Decoder(nnx.Module):
    """Decoder-only transformer: logits of the next token, and auxiliary losses.

    Attributes:
        attention: one for all layers, or a cycle that repeats over the layers, as in
            `[@local/Attention, @global/Attention]`.
        mlp: likewise, with its own cycle.
        first_mlps: feed-forward layers of the first layers, where they differ.
        mtp: predicts additional tokens, for the loss `MultiToken`.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        vocab: Positive[int],
        width: Positive[int],
        depth: Annotated[int, Range("from 1 to 10,000", lambda x: 0 < x <= 10_000)],
        attention: Cyclic[SelfAttention],
        mlp: Cyclic[FeedForward],
        first_mlps: tuple[Callable[..., FeedForward], ...] = (),
        block: Callable[..., Block] = PreNorm,
        norm: Callable[..., Norm] = RMSNorm,
        position: Callable[..., AbsolutePosition] | None = None,
        head: Callable[..., LMHead] = LMHead,
        mtp: Callable[..., MultiTokenPrediction] | None = None,
        init: Initializer = FanIn(),
        embed_scale: float = 1.0,
        logit_cap: Positive[float | None] = None,
        dropout: Rate[float] = 0.0,
        precision: Precision = Precision(),
        unroll: Execution[Positive[int]] = 1,
        remat: Execution[Remat] = "keep_all",
        pipeline: Execution[PipelineSchedule] = PipelineSchedule(),
    ):
        params = Init(rngs, init, depth, precision.params)
        sizes = dict(V=vocab, D=width)
        self.embedding: AnyWeight = params.weight(
            "VD", sizes, in_dims="V", role="embed"
        )
        self.position = position and position(width, params)
        make_block = partial(block, width, norm=norm)
        layers, groups = plan_layers(depth, attention, mlp, first_mlps, make_block)
        self.stack = Stack(
            layers, groups, params, unroll=unroll, remat=remat, pipeline=pipeline
        )
        self.norm = norm(width, params)
        self.head = head(width, vocab, params)
        self.mtp = mtp and mtp(width, params, layers[-1], norm)
        self.vocab, self.logit_cap, self.dropout = vocab, logit_cap, dropout
        self.embed_scale, self.precision = embed_scale, precision
        self.initializer = init

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
        """Logits in at least float32, and auxiliary means. Dropout needs `keys`."""
        x_BTD, aux = self.hidden_states(tokens, positions, segments, keys)
        return self.logits(x_BTD), aux

    def hidden_states(self, *inputs: Any) -> tuple[Float[Array, "B T D"], Aux]:
        """Normalized hidden states of the inputs of `forward`, and auxiliary means."""
        layer_inputs = make_inputs(*inputs)
        x_BTD = self.embed(inputs[0], layer_inputs)
        x_BTD, aux, _ = self.apply_layers(x_BTD, layer_inputs, None)
        return tap("final_norm", self.norm(x_BTD)), aux

    @property
    def max_length(self) -> int | None:
        """Maximum number of tokens of a document; None: unlimited."""
        return self.position and self.position.max_length

    def init_cache(
        self,
        batch_size: int,
        capacity: int,
        final_length: Length | None = None,
        rollback: int = 0,
    ) -> KVCache:
        """An empty cache for `capacity` tokens per row.

        `final_length` is that of the longest complete text; `rollback` is the number of
        newest tokens that `KVCache.truncate` can always remove.
        """
        dtype = self.precision.compute_dtype
        size = CacheSize(batch_size, capacity, dtype, rollback)
        zeros_BS = jnp.zeros((batch_size, capacity), jnp.int32)
        zeros_B = jnp.zeros(batch_size, jnp.int32)
        final_length = capacity if final_length is None else final_length
        return KVCache(
            self.stack.init_cache(size),
            zeros_BS,
            zeros_BS,
            zeros_B,
            zeros_B,
            jnp.full(batch_size, final_length, jnp.int32),
        )

    def decode(
        self,
        cache: KVCache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T V"], KVCache]:
        """Logits of tokens that follow those in `cache`, and the updated cache.

        Segment 0 is padding, which may be anywhere. Tokens beyond the capacity replace
        the oldest.
        """
        info, cache = cache.append(positions, segments)
        inputs = AttentionInputs(info, cache.final_length, cache._replace(layers=None))
        x_BTD = self.embed(tokens, inputs)
        x_BTD, _, layers = self.apply_layers(x_BTD, inputs, cache.layers)
        return self.logits(tap("final_norm", self.norm(x_BTD))), cache._replace(
            layers=layers
        )

    def embed(
        self, tokens: Int[Array, "B T"], inputs: AttentionInputs
    ) -> Float[Array, "B T D"]:
        """Token embeddings, plus absolute positions."""
        x_BTD = lookup(self.embedding, tokens).astype(self.precision.compute_dtype)
        x_BTD = constrain_embedding(x_BTD) * jnp.asarray(self.embed_scale, x_BTD.dtype)
        if self.position:
            x_BTD += self.position(inputs.tokens.positions).astype(x_BTD.dtype)
        return tap("embed", constrain(x_BTD, "BTD"))

    def apply_layers(
        self, x: Float[Array, "B T D"], inputs: AttentionInputs, cache: PyTree
    ) -> tuple[Float[Array, "B T D"], Aux, PyTree]:
        """Runs all layers: hidden states, auxiliary means and the updated cache."""
        x = dropout(x, self.dropout, inputs.keys, EMBEDDING_SITE)
        return self.stack(x, inputs, cache)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits of normalized hidden states, in at least float32."""
        logits_BTV = constrain(upcast(self.head(x, self.embedding)), "BTV")
        if self.logit_cap is not None:
            logits_BTV = soft_cap(logits_BTV, self.logit_cap)
        return tap("logits", logits_BTV)
