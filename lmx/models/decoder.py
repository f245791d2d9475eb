"""A decoder-only language model: embed, `depth` residual blocks, unembed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from lmx.config.names import Execution, configurable
from lmx.core.mean import Aux
from lmx.core.precision import Precision, widened
from lmx.layers import mask
from lmx.layers.attention import Attention, Context, soft_cap
from lmx.layers.dropout import dropout
from lmx.layers.head import Head, Untied
from lmx.layers.init import FanIn, Init, Scheme
from lmx.layers.mlp import FeedForward
from lmx.layers.norm import Norm, RMSNorm
from lmx.layers.position.absolute import Absolute
from lmx.models.block import Block, Past, PreNorm
from lmx.models.cache import Cache
from lmx.models.stack import Remat, Stack

configurable(Precision)

BELOW = 2**31  # dropout's use of a key below the layers, beyond any layer's number


@configurable
class Decoder(nnx.Module):
    """Logits of the next token at every position, and what the layers tell the loss."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        vocab: int,
        width: int,
        depth: int,
        attention: Callable[..., Attention],
        mlp: Callable[..., FeedForward],
        block: Callable[..., Block] = PreNorm,
        norm: Callable[..., Norm] = RMSNorm,
        position: Callable[..., Absolute] | None = None,
        head: Callable[..., Head] = Untied,
        init: Scheme = FanIn(),
        logit_cap: float | None = None,
        dropout: float = 0.0,
        precision: Precision = Precision(),
        unroll: Execution[int] = 1,
        remat: Execution[Remat] = "keep_all",
    ):
        born = Init(rngs, init, depth, precision.params)
        sizes = dict(V=vocab, D=width)
        self.table = born.weight("VD", sizes, into="V", role="embed")
        self.position = position and position(width, born)
        self.stack = Stack(
            lambda born: block(width, born, attention, mlp, norm),
            depth,
            born,
            unroll=unroll,
            remat=remat,
        )
        self.norm = norm(width, born)
        self.head = head(width, vocab, born)
        self.vocab, self.logit_cap, self.dropout = vocab, logit_cap, dropout
        self.precision = precision

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits. Each row is one document if there are no `segments`.

        Without `positions` they restart at 0 with each document.
        """
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
        if segments is None:
            segments = jnp.ones_like(tokens)
        if positions is None:
            positions = mask.restarting(segments)
        context = Context(
            positions=positions,
            mask=mask.causal(segments, segments),
            live=segments > 0,
            first=jnp.zeros((), jnp.int32),
            keys=keys,
        )
        logits_BTV, aux, _ = self._run(tokens, context, None)
        return logits_BTV, aux

    @property
    def limit(self) -> int | None:
        """How many tokens of a document it can see; None: as many as one likes."""
        return self.position and self.position.limit

    def cache(self, rows: int, length: int) -> Cache:
        """An empty cache with room for `length` tokens of each of `rows` texts."""
        one = self.stack.blocks.empty(rows, length, self.precision.compute_dtype)
        depth = self.stack.depth
        return Cache(
            jax.tree.map(lambda x: jnp.zeros((depth, *x.shape), x.dtype), one),
            jnp.zeros((rows, length), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def extend(
        self,
        past: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T V"], Cache]:
        """Logits of tokens that follow those in `past`, and the longer past.

        Segment 0 is padding, which nothing sees. There must be room for the tokens:
        beyond it they would be written over the last ones.
        """
        now = past.read(segments)
        context = Context(
            positions=positions,
            mask=mask.causal(segments, now.segments, past.length),
            live=segments > 0,
            first=past.length,
        )
        logits_BTV, _, layers = self._run(tokens, context, past.layers)
        return logits_BTV, now._replace(layers=layers)

    def _run(
        self, tokens: Int[Array, "B T"], context: Context, past: Past | None
    ) -> tuple[Float[Array, "B T V"], Aux, Past | None]:
        x_BTD = self.table[...][tokens].astype(self.precision.compute_dtype)
        if self.position:
            x_BTD += self.position(context.positions).astype(x_BTD.dtype)
        x_BTD = dropout(x_BTD, self.dropout, context.keys, BELOW)
        x_BTD, aux, past = self.stack(x_BTD, context, past)
        logits_BTV = widened(self.head(self.norm(x_BTD), self.table[...]))
        if self.logit_cap is not None:
            logits_BTV = soft_cap(logits_BTV, self.logit_cap)
        return logits_BTV, aux, past
