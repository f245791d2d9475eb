"""Text out of a model, token by token, from a cache that stays on the device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Int32, PyTree

from lmx.config.names import ConfigError
from lmx.core import rng
from lmx.data.tokenizers.codec import Codec
from lmx.infer.sample import Sampler
from lmx.models.cache import Cache

CHUNK = 16  # tokens made by one jitted loop before the host looks at them
BUCKET = 64  # prompts are padded to a multiple of this, so that few lengths compile


def prompt_of(codec: Codec, text: str) -> list[int]:
    """The tokens of a text that begins a document."""
    begin = [] if codec.begin is None else [codec.begin]
    prompt = [*begin, *map(int, codec.encode(text))]
    if not prompt:
        raise ConfigError(
            "this model has no token that begins a document: give a prompt of a"
            " character or more."
        )
    return prompt


class Going(NamedTuple):
    """A generation under way."""

    cache: Cache
    token: Int[Array, "B"]  # the newest, not yet in the cache
    position: Int[Array, "B"]  # of that token
    made: Int[Array, ""]  # tokens so far


class Generator:
    """A model's parameters and the compiled functions that continue prompts."""

    def __init__(
        self, graph: nnx.GraphDef, params: PyTree, sampler: Sampler, seed: int
    ):
        self.graph, self.params = graph, params
        self.sampler, self.seed = sampler, seed
        self.limit = nnx.merge(graph, params).limit
        self.prefill = jax.jit(self._prefill, static_argnames="room")
        self.decode = jax.jit(self._decode, donate_argnums=1)

    def __call__(
        self, prompts: Sequence[Sequence[int]], tokens: int
    ) -> Iterator[Int32[np.ndarray, "B T"]]:
        """That many tokens after each prompt, in pieces of up to `CHUNK`.

        A prompt has one token at least. A model with a limit goes on from the last half
        of what it can see whenever that is full.
        """
        limit = self.limit
        rows = [list(prompt) for prompt in prompts]
        left = tokens
        while left > 0:
            if limit:
                rows = [row if len(row) < limit else row[-limit // 2 :] for row in rows]
            fits = left if not limit else min(left, limit - max(map(len, rows)))
            for piece in self._window(rows, fits, tokens - left):
                rows = [
                    row + new.tolist() for row, new in zip(rows, piece, strict=True)
                ]
                left -= piece.shape[1]
                yield piece

    def stream(
        self, prompt: Sequence[int], tokens: int, end: int | None
    ) -> Iterator[int]:
        """The tokens after one prompt, one by one, up to the one that ends it."""
        for piece_BT in self([prompt], tokens):
            for token in map(int, piece_BT[0]):
                if token == end:
                    return
                yield token

    def _window(
        self, rows: list[list[int]], tokens: int, made: int
    ) -> Iterator[Int32[np.ndarray, "B T"]]:
        """That many tokens, all within what the model can see at once."""
        longest = max(map(len, rows))
        width = min(-(-longest // BUCKET) * BUCKET, self.limit or longest + BUCKET)
        prompt_BT = np.zeros((len(rows), width), np.int32)
        for padded, row in zip(prompt_BT, rows, strict=True):
            padded[width - len(row) :] = row
        lengths_B = np.array([len(row) for row in rows], np.int32)
        room = width + -(-tokens // CHUNK) * CHUNK
        going = self.prefill(self.params, prompt_BT, lengths_B, made, room=room)
        for start in range(0, tokens, CHUNK):
            going, piece_TB = self.decode(self.params, going)
            yield np.asarray(piece_TB).T[:, : tokens - start]

    def _prefill(
        self,
        params: PyTree,
        prompt: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        made: Int[Array, ""],
        room: int,
    ) -> Going:
        """Reads the prompts, which end together, and draws one token for each."""
        model = nnx.merge(self.graph, params)
        B, T = prompt.shape
        place_BT = jnp.arange(T)[None] - (T - lengths)[:, None]
        segments_BT = (place_BT >= 0).astype(jnp.int32)
        logits_BTV, cache = model.extend(
            model.cache(B, room), prompt, jnp.maximum(place_BT, 0), segments_BT
        )
        return Going(cache, self._draw(logits_BTV[:, -1], made), lengths, made + 1)

    def _decode(self, params: PyTree, going: Going) -> tuple[Going, Int[Array, "T B"]]:
        """`CHUNK` tokens, beginning with the newest that `going` already has."""
        model = nnx.merge(self.graph, params)

        def step(going: Going, _: None) -> tuple[Going, Int[Array, "B"]]:
            token_B1, position_B1 = going.token[:, None], going.position[:, None]
            logits_B1V, cache = model.extend(
                going.cache, token_B1, position_B1, jnp.ones_like(token_B1)
            )
            token_B = self._draw(logits_B1V[:, 0], going.made)
            after = Going(cache, token_B, going.position + 1, going.made + 1)
            return after, going.token

        return jax.lax.scan(step, going, None, length=CHUNK)

    def _draw(self, logits: Array, made: Int[Array, ""]) -> Int[Array, "B"]:
        keys_B = rng.fold(self.seed, made, "sample", logits.shape[0])
        return self.sampler(logits, keys_B).astype(jnp.int32)
