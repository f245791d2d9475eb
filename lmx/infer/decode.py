"""Reading prompts and making tokens, as pure functions of a model and its cache."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from lmx.config.registry import ConfigError
from lmx.core import rng
from lmx.infer.sample import Sampler
from lmx.layers.attention.kv_cache import KVCache
from lmx.models.decoder import Decoder

BUCKET = 64  # tokens: prompts and caches have a multiple of it, so that few compile


class Prompts(NamedTuple):
    """Texts of different lengths as one array, ends aligned."""

    tokens: Int32[Array | np.ndarray, "B T"]
    segments: Int32[Array | np.ndarray, "B T"]  # 1, and 0 at padding
    row_ids: Int32[Array | np.ndarray, "B"]  # which draws each row takes


class DecodeState(NamedTuple):
    """Rows under way."""

    cache: KVCache
    logits: Float[Array, "B V"]  # of the token that comes next
    position: Int[Array, "B"]  # of that token
    seen: Bool[Array, "B V"]  # the tokens that a row has already
    active: Bool[Array, "B"]  # False once a row has stopped
    row_ids: Int[Array, "B"]  # which draws each row takes
    generated: Int[Array, ""]  # tokens so far


class Generated(NamedTuple):
    """Tokens after each prompt."""

    tokens: Int[Array | np.ndarray, "B *T"]  # 0 where a row has stopped
    logprobs: Float[Array | np.ndarray, "B *T"]  # in nats, likewise
    active: Bool[Array | np.ndarray, "B *T"]  # False where a row has stopped


def check_prompts(prompts: Sequence[Sequence[int]], vocab: int) -> None:
    """Refuses prompts that have no token to begin with, or one that is unknown."""
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(
                f"prompt {number} has no token: give each at least one, such as the"
                " one that begins a document."
            )
        token_mask(prompt, vocab)


def token_mask(tokens: Collection[int], vocab: int) -> Bool[np.ndarray, "V"]:
    """True at those tokens."""
    if outside := [token for token in tokens if not 0 <= token < vocab]:
        raise ConfigError(
            f"token {outside[0]} is none of the {vocab} that the model knows: they are"
            " counted from 0."
        )
    marked_V = np.zeros(vocab, bool)
    marked_V[list(tokens)] = True
    return marked_V


def round_to_bucket(tokens: int) -> int:
    """The next multiple of `BUCKET`."""
    return -(-tokens // BUCKET) * BUCKET


def pad_prompts(
    prompts: Sequence[Sequence[int]], limit: int | None, first_row_id: int = 0
) -> Prompts:
    """The prompts, padded on the left to one of a few lengths, `limit` at most.

    They are numbered from `first` on.
    """
    B, width = len(prompts), round_to_bucket(max(map(len, prompts)))
    width = width if limit is None else min(width, limit)
    tokens_BT, segments_BT = np.zeros((2, B, width), np.int32)
    for row, prompt in enumerate(prompts):
        begin = width - len(prompt)
        tokens_BT[row, begin:], segments_BT[row, begin:] = prompt, 1
    numbers_B = np.arange(first_row_id, first_row_id + B, dtype=np.int32)
    return Prompts(tokens_BT, segments_BT, numbers_B)


def prefill(
    model: Decoder,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
) -> tuple[Float[Array, "B V"], KVCache]:
    """Reads one text a row; the logits of what follows its last token.

    Segment 0 is padding, which may stand anywhere in a row.
    """
    live_BT = segments > 0
    positions_BT = jnp.maximum(jnp.cumsum(live_BT, axis=1) - 1, 0)
    logits_BTV, cache = model.decode(cache, tokens, positions_BT, segments)
    last_B = live_BT.shape[1] - 1 - jnp.argmax(live_BT[:, ::-1], axis=1)
    last_B11 = last_B[:, None, None]
    return jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0], cache


def start_decoding(
    model: Decoder,
    capacity: int,
    generated: Int[Array, ""],
    max_new_tokens: Int[Array, ""],
    prompts: Prompts,
) -> DecodeState:
    """Reads the prompts into a new cache of that room; rows of padding are silent.

    `more` tokens will follow each.
    """
    tokens, segments, numbers = map(jnp.asarray, prompts)
    B, live_BT = len(tokens), segments > 0
    cache = model.init_cache(B, capacity, live_BT.sum(axis=1).max() + max_new_tokens)
    logits_BV, cache = prefill(model, cache, tokens, segments)
    seen_BV = jnp.zeros(logits_BV.shape, bool)
    seen_BV = seen_BV.at[jnp.arange(B)[:, None], tokens].max(live_BT)
    length_B = live_BT.sum(axis=1)
    return DecodeState(
        cache, logits_BV, length_B, seen_BV, length_B > 0, numbers, generated
    )


def decode_step(
    model: Decoder,
    sampler: Sampler,
    seed: int,
    stops: Bool[Array, "V"],
    state: DecodeState,
) -> tuple[DecodeState, Generated]:
    """One more token in every row that has not stopped.

    A row stops after a token at which `stop_tokens` is True. The log-probability is the
    model's own, before the sampler's rules.
    """
    key = jax.random.fold_in(rng.key(seed, "sample"), state.generated)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, state.row_ids)
    token_B = sampler(state.logits, state.seen, keys_B).astype(jnp.int32)
    token_B = jnp.where(state.active, token_B, 0)
    log_probs_BV = jax.nn.log_softmax(state.logits, axis=-1)
    log_prob_B = jnp.take_along_axis(log_probs_BV, token_B[:, None], axis=1)[:, 0]
    made = Generated(token_B, jnp.where(state.active, log_prob_B, 0), state.active)
    live_B = state.active & ~stops[token_B]
    logits_B1V, cache = model.decode(
        state.cache,
        token_B[:, None],
        state.position[:, None],
        live_B[:, None].astype(jnp.int32),
    )
    after = state._replace(
        cache=cache,
        logits=logits_B1V[:, 0],
        position=state.position + 1,
        seen=state.seen.at[jnp.arange(len(token_B)), token_B].set(True),
        active=live_B,
        generated=state.generated + 1,
    )
    return after, made
