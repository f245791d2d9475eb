"""Text generation with a KV cache on the device.

Prefill and decoding are pure functions of a model and its cache.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from lmx.config.registry import ConfigError, require
from lmx.core import distributed, rng
from lmx.data.tokenizer.base import Tokenizer
from lmx.infer.sample import Sampler
from lmx.layers.attention.kv_cache import KVCache
from lmx.layers.mlp import FeedForward
from lmx.models.decoder import Decoder

BUCKET = 64  # tokens; prompts and caches are padded to a multiple, for few compilations
CHUNK = 16  # tokens decoded by one jitted loop


class Prompts(NamedTuple):
    """Prompts of different lengths, padded on the left."""

    tokens: Int32[Array | np.ndarray, "B T"]
    segments: Int32[Array | np.ndarray, "B T"]  # 1, and 0 at padding
    row_ids: Int32[Array | np.ndarray, "B"]  # select the random stream of each row


class DecodeState(NamedTuple):
    """The state of decoding after some tokens."""

    cache: KVCache
    logits: Float[Array, "B V"]  # of the next token
    position: Int[Array, "B"]  # of the next token
    seen: Bool[Array, "B V"]  # the tokens that a row contains
    active: Bool[Array, "B"]  # False after a stop token
    row_ids: Int[Array, "B"]
    generated: Int[Array, "B"]  # number of tokens

    def select(self, rows: Int[Array, "M"]) -> "DecodeState":
        """The state of these rows, in this order, possibly repeated.

        Rows with a common prefix are read as `read_prompts(model, prefix.select(...))`.
        """
        cache = self.cache.select(rows)
        return DecodeState(cache, *(x[rows] for x in self[1:]))

    def insert(self, rows: Int[Array, "M"], prefill: "DecodeState") -> "DecodeState":
        """The state with the rows of `prefill` in place of these; see `KVCache`."""
        cache = self.cache.insert(rows, prefill.cache)
        pairs = zip(self[1:], prefill[1:], strict=True)
        return DecodeState(cache, *(x.at[rows].set(y) for x, y in pairs))

    def evict(self, rows: Int[Array, "M"]) -> "DecodeState":
        """The state with these rows empty and inactive."""
        cache = self.cache.clear(rows)
        others = (x.at[rows].set(jnp.zeros((), x.dtype)) for x in self[1:])
        return DecodeState(cache, *others)


class Generated(NamedTuple):
    """New tokens of each row; 0 where the row is not active."""

    tokens: Int[Array | np.ndarray, "B *T"]
    logprobs: Float[Array | np.ndarray, "B *T"]  # nats
    active: Bool[Array | np.ndarray, "B *T"]


def check_causal(model: nnx.Module) -> None:
    """Refuses a model in which a token depends on later ones."""
    for _, module in nnx.iter_modules(model):
        require(
            not isinstance(module, FeedForward) or module.causal,
            f"{type(module).__name__} is not causal: its output for a token depends"
            " on later tokens, which do not exist during generation. Train with a"
            " causal layer, as in Decoder.mlp = @MoE.",
        )


def check_prompts(prompts: Sequence[Sequence[int]], vocab: int) -> None:
    """Refuses empty prompts and unknown tokens."""
    for number, prompt in enumerate(prompts):
        require(
            len(prompt),
            f"prompt {number} has no token: each needs at least one, such as the"
            " one that starts a document.",
        )
        token_mask(prompt, vocab)


def token_mask(tokens: Collection[int], vocab: int) -> Bool[np.ndarray, "V"]:
    """True at these tokens."""
    if unknown := [token for token in tokens if not 0 <= token < vocab]:
        raise ConfigError(
            f"token {unknown[0]} is not in the vocabulary of {vocab} tokens, which are"
            " counted from 0."
        )
    mask_V = np.zeros(vocab, bool)
    mask_V[list(tokens)] = True
    return mask_V


def round_to_bucket(tokens: int) -> int:
    """The next multiple of BUCKET."""
    return -(-tokens // BUCKET) * BUCKET


def pad_prompts(
    prompts: Sequence[Sequence[int]], max_length: int | None, first_row_id: int = 0
) -> Prompts:
    """The prompts in one array, as long as a bucket, but at most `max_length`."""
    width = round_to_bucket(max(map(len, prompts)))
    width = width if max_length is None else min(width, max_length)
    tokens_BT, segments_BT = np.zeros((2, len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, width - len(prompt) :] = prompt
        segments_BT[row, width - len(prompt) :] = 1
    row_ids_B = np.arange(first_row_id, first_row_id + len(prompts), dtype=np.int32)
    return Prompts(tokens_BT, segments_BT, row_ids_B)


def prefill(
    model: Decoder,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
) -> tuple[Float[Array, "B V"], KVCache]:
    """Reads one prompt per row; returns the logits of the token after it.

    It continues the tokens in `cache`. Segment 0 is padding, anywhere in a row.
    """
    unpadded_BT = segments > 0
    index_BT = cache.lengths[:, None] + jnp.cumsum(unpadded_BT, axis=1) - 1
    positions_BT = jnp.maximum(index_BT, 0)
    logits_BTV, cache = model.decode(cache, tokens, positions_BT, segments)
    last_B = unpadded_BT.shape[1] - 1 - jnp.argmax(unpadded_BT[:, ::-1], axis=1)
    last_B11 = last_B[:, None, None]
    return jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0], cache


def start_decoding(
    graph: nnx.GraphDef,
    params: PyTree,
    generated: Int[Array, ""],
    max_new_tokens: Int[Array, ""],
    prompts: Prompts,
    *,
    capacity: int,
) -> DecodeState:
    """Reads the prompts into a new cache for `capacity` tokens.

    Rows of padding are not active. At most `max_new_tokens` follow each prompt.
    """
    model, B = nnx.merge(graph, params), len(prompts.tokens)
    length_B = (prompts.segments > 0).sum(axis=1)
    cache = model.init_cache(B, capacity, length_B.max() + max_new_tokens)
    state = empty_state(model, cache)
    state = state._replace(generated=state.generated + generated)
    return read_prompts(model, state, prompts)


def empty_state(model: Decoder, cache: KVCache) -> DecodeState:
    """The state before the first tokens; no row is active."""
    shape, dtype = (len(cache.lengths), model.vocab), model.precision.compute_dtype
    logits_BV = jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
    seen_BV, zeros_B = jnp.zeros(shape, bool), jnp.zeros(shape[0], jnp.int32)
    active_B = jnp.zeros(shape[0], bool)
    return DecodeState(cache, logits_BV, zeros_B, seen_BV, active_B, zeros_B, zeros_B)


def read_prompts(model: Decoder, state: DecodeState, prompts: Prompts) -> DecodeState:
    """The state after `prompts`, each of which continues its row and makes it active.

    Rows of padding remain as they are.
    """
    tokens, segments, row_ids = map(jnp.asarray, prompts)
    unpadded_BT, row_B1 = segments > 0, jnp.arange(len(tokens))[:, None]
    read_B = unpadded_BT.any(axis=1)
    logits_BV, cache = prefill(model, state.cache, tokens, segments)
    return DecodeState(
        cache,
        jnp.where(read_B[:, None], logits_BV, state.logits),
        cache.lengths,
        state.seen.at[row_B1, tokens].max(unpadded_BT),
        state.active | read_B,
        jnp.where(read_B, row_ids, state.row_ids),
        state.generated,
    )


def decode_chunk(
    graph: nnx.GraphDef,
    sampler: Sampler,
    seed: int,
    params: PyTree,
    stops: Bool[Array, "V"],
    state: DecodeState,
) -> tuple[DecodeState, Generated]:
    """Decodes CHUNK tokens; the time axis of the result comes first."""
    step = partial(decode_step, nnx.merge(graph, params), sampler, seed, stops)
    return jax.lax.scan(step, state, length=CHUNK)


def decode_step(
    model: Decoder,
    sampler: Sampler,
    seed: int,
    stops: Bool[Array, "V"],
    state: DecodeState,
    _: None = None,
) -> tuple[DecodeState, Generated]:
    """Decodes one token in every active row. `stops` is True at stop tokens.

    The log-probability is that of the model, without the rules of the sampler.
    """
    fold_in, key = jax.random.fold_in, rng.key(seed, "sample")
    keys_B = jax.vmap(lambda count, row: fold_in(fold_in(key, count), row))(
        state.generated, state.row_ids
    )
    token_B = sampler(state.logits, state.seen, keys_B).astype(jnp.int32)
    token_B = jnp.where(state.active, token_B, 0)
    logprobs_BV = jax.nn.log_softmax(state.logits, axis=-1)
    logprob_B = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=1)[:, 0]
    logprob_B = jnp.where(state.active, logprob_B, 0)
    active_B = state.active & ~stops[token_B]
    logits_B1V, cache = model.decode(
        state.cache,
        token_B[:, None],
        state.position[:, None],
        active_B[:, None].astype(jnp.int32),
    )
    following = state._replace(
        cache=cache,
        logits=logits_B1V[:, 0],
        position=state.position + 1,
        seen=state.seen.at[jnp.arange(len(token_B)), token_B].set(True),
        active=active_B,
        generated=state.generated + state.active,
    )
    return following, Generated(token_B, logprob_B, state.active)


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text at the start of a document."""
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    prompt = [*bos, *map(int, tokenizer.encode(text))]
    require(
        prompt,
        "this model has no token that starts a document: give a prompt of at least"
        " one character.",
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
                count = min(left, max(1, limit - max(map(len, rows))))
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
        chunks = self([prompt], max_new_tokens, stop_tokens)
        tokens = (t for chunk in chunks for t in chunk.tokens[chunk.active].tolist())
        return (token for token in tokens if token not in stop_tokens)


def _extend_row(row: list[int], new: list[int], stop: Collection[int]) -> list[int]:
    """The row with new tokens; empty once it has stopped."""
    return [] if not row or any(token in stop for token in new) else row + new
