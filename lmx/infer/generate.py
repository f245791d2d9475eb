"""Text generation with a KV cache on the device."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from lmx.config.registry import ConfigError
from lmx.core import distributed
from lmx.data.tokenizer.base import Tokenizer
from lmx.infer.decode import (
    CHUNK,
    Generated,
    check_causal,
    check_prompts,
    decode_chunk,
    pad_prompts,
    round_to_bucket,
    start_decoding,
    token_mask,
)
from lmx.infer.sample import Sampler


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text at the start of a document."""
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    prompt = [*bos, *map(int, tokenizer.encode(text))]
    if not prompt:
        raise ConfigError(
            "this model has no token that starts a document: give a prompt of at least"
            " one character."
        )
    return prompt


class Generator:
    """A model's parameters, and the compiled functions that continue prompts."""

    def __init__(
        self, graph: nnx.GraphDef, params: PyTree, sampler: Sampler, seed: int
    ):
        model = nnx.merge(graph, params)
        check_causal(model)
        self.params, self.max_length, self.vocab = params, model.max_length, model.vocab
        self.start = jax.jit(partial(start_decoding, graph), static_argnames="capacity")
        self.decode = jax.jit(
            partial(decode_chunk, graph, sampler, seed), donate_argnames="state"
        )

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_tokens: Collection[int] = (),
        first_row_id: int = 0,
    ) -> Iterator[Generated]:
        """Generates tokens after each prompt, in chunks of up to CHUNK.

        Prompts are numbered from `first_row_id`; the number selects the random stream
        of a row, so that rows do not affect one another. A row stops after a stop
        token, and generation ends when all rows have stopped. When the context of a
        model with a maximum length is full, the last half of it is kept.
        """
        check_prompts(prompts, self.vocab)
        stops_V, limit = token_mask(stop_tokens, self.vocab), self.max_length
        rows, left = [list(prompt) for prompt in prompts], max_new_tokens
        while left > 0 and any(rows):
            count = left
            if limit:
                rows = [row if len(row) < limit else row[-limit // 2 :] for row in rows]
                count = min(left, limit - max(map(len, rows)))
            padded = pad_prompts(rows, limit, first_row_id)
            width = padded.tokens.shape[1] + -(-count // CHUNK) * CHUNK
            state = self.start(
                self.params,
                np.int32(max_new_tokens - left),
                np.int32(count),
                padded,
                capacity=round_to_bucket(width),
            )
            left -= count
            while count > 0 and any(rows):
                state, chunk = self.decode(self.params, stops_V, state=state)
                parts = (distributed.fetch_global(x).T[:, :count] for x in chunk)
                yield (chunk := Generated(*parts))
                count -= CHUNK
                rows = [
                    _extend_row(row, new[active].tolist(), stop_tokens)
                    for row, new, active in zip(
                        rows, chunk.tokens, chunk.active, strict=True
                    )
                ]

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop_tokens: Collection[int] = (),
    ) -> Iterator[int]:
        """The tokens after one prompt, without the stop token."""
        for chunk in self([prompt], max_new_tokens, stop_tokens):
            for token in chunk.tokens[chunk.active].tolist():
                if token in stop_tokens:
                    return
                yield token


def _extend_row(row: list[int], new: list[int], stop: Collection[int]) -> list[int]:
    """The row with new tokens; empty once it has stopped."""
    return [] if not row or any(token in stop for token in new) else row + new
