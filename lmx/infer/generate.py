"""Text out of a model, token by token, from a cache that stays on the device."""

from collections.abc import Collection, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, PyTree

from lmx.config.registry import ConfigError
from lmx.core import distributed
from lmx.data.tokenizer.base import Tokenizer
from lmx.infer.causal import check_causal
from lmx.infer.decode import (
    DecodeState,
    Generated,
    Prompts,
    check_prompts,
    decode_step,
    pad_prompts,
    round_to_bucket,
    start_decoding,
    token_mask,
)
from lmx.infer.sample import Sampler

CHUNK = 16  # tokens made by one jitted loop before the host looks at them


def encode_prompt(codec: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that begins a document."""
    begin = [] if codec.bos is None else [codec.bos]
    prompt = [*begin, *map(int, codec.encode(text))]
    if not prompt:
        raise ConfigError(
            "this model has no token that begins a document: give a prompt of a"
            " character or more."
        )
    return prompt


def get_stop_tokens(codec: Tokenizer) -> set[int]:
    """The tokens that end a document, if there are any."""
    return set() if codec.eos is None else {codec.eos}


class Generator:
    """A model's parameters and the compiled functions that continue prompts."""

    def __init__(
        self, graph: nnx.GraphDef, params: PyTree, sampler: Sampler, seed: int
    ):
        model = nnx.merge(graph, params)
        check_causal(model)
        self.graph, self.params = graph, params
        self.sampler, self.seed = sampler, seed
        self.max_length, self.vocab = model.max_length, model.vocab
        self.start = jax.jit(self._begin, static_argnames="capacity")
        self.decode = jax.jit(self._decode, donate_argnames="state")

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_tokens: Collection[int] = (),
        first_row_id: int = 0,
    ) -> Iterator[Generated]:
        """That many tokens after each prompt, in pieces of up to `CHUNK`.

        Prompts are numbered from `first` on, and each draws by its number, whatever
        others there are. A row stops after any of the `stop_tokens` tokens, and all does when
        all rows have. A model with a limit goes on from the last half of what it can
        see whenever that is full.
        """
        check_prompts(prompts, self.vocab)
        stops_V = token_mask(stop_tokens, self.vocab)
        rows, left = [list(prompt) for prompt in prompts], max_new_tokens
        while left > 0:
            if limit := self.max_length:
                rows = [row if len(row) < limit else row[-limit // 2 :] for row in rows]
            fits = left if not limit else min(left, limit - max(map(len, rows)))
            window = pad_prompts(rows, self.max_length, first_row_id)
            for made in self._window(window, stops_V, fits, max_new_tokens - left):
                yield made
                left -= made.tokens.shape[1]
                rows = [
                    _extend_row(row, new[live].tolist(), stop_tokens)
                    for row, new, live in zip(
                        rows, made.tokens, made.active, strict=True
                    )
                ]
                if not any(rows):
                    return

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop_tokens: Collection[int] = (),
    ) -> Iterator[int]:
        """The tokens after one prompt, one by one, up to one that stops it."""
        for made in self([prompt], max_new_tokens, stop_tokens):
            for token in made.tokens[made.active].tolist():
                if token in stop_tokens:
                    return
                yield token

    def _window(
        self, prompts: Prompts, stops: Bool[np.ndarray, "V"], tokens: int, made: int
    ) -> Iterator[Generated]:
        """That many tokens, all within what the model can see at once."""
        room = round_to_bucket(prompts.tokens.shape[1] + -(-tokens // CHUNK) * CHUNK)
        ahead = np.int32(made), np.int32(tokens)
        going = self.start(self.params, *ahead, prompts, capacity=room)
        for start in range(0, tokens, CHUNK):
            going, piece = self.decode(self.params, stops, state=going)
            yield Generated(
                *(distributed.fetch_global(x).T[:, : tokens - start] for x in piece)
            )

    def _begin(
        self,
        params: PyTree,
        made: Int[Array, ""],
        more: Int[Array, ""],
        prompts: Prompts,
        capacity: int,
    ) -> DecodeState:
        return start_decoding(
            nnx.merge(self.graph, params), capacity, made, more, prompts
        )

    def _decode(
        self, params: PyTree, stops: Bool[Array, "V"], state: DecodeState
    ) -> tuple[DecodeState, Generated]:
        """`CHUNK` tokens a row, time first."""
        model = nnx.merge(self.graph, params)

        def one(state: DecodeState, _: None) -> tuple[DecodeState, Generated]:
            return decode_step(model, self.sampler, self.seed, stops, state)

        return jax.lax.scan(one, state, None, length=CHUNK)


def _extend_row(row: list[int], new: list[int], stop: Collection[int]) -> list[int]:
    """The row with what is new; nothing once it has stopped."""
    return [] if not row or any(token in stop for token in new) else row + new
