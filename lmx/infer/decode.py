"""Reading prompts and making tokens, as pure functions of a model and its cache."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from lmx.config.names import ConfigError
from lmx.core import rng
from lmx.infer.sample import Sampler
from lmx.layers.attention.cache import Cache
from lmx.models.decoder import Decoder

BUCKET = 64  # tokens: prompts and caches have a multiple of it, so that few compile


class Prompts(NamedTuple):
    """Texts of different lengths as one array, ends aligned."""

    tokens: Int32[Array | np.ndarray, "B T"]
    segments: Int32[Array | np.ndarray, "B T"]  # 1, and 0 at padding
    numbers: Int32[Array | np.ndarray, "B"]  # which draws each row takes


class Going(NamedTuple):
    """Rows under way."""

    cache: Cache
    logits: Float[Array, "B V"]  # of the token that comes next
    position: Int[Array, "B"]  # of that token
    seen: Bool[Array, "B V"]  # the tokens that a row has already
    live: Bool[Array, "B"]  # False once a row has stopped
    numbers: Int[Array, "B"]  # which draws each row takes
    made: Int[Array, ""]  # tokens so far


class Made(NamedTuple):
    """Tokens after each prompt."""

    tokens: Int[Array | np.ndarray, "B *T"]  # 0 where a row has stopped
    logprobs: Float[Array | np.ndarray, "B *T"]  # in nats, likewise
    live: Bool[Array | np.ndarray, "B *T"]  # False where a row has stopped


def check(prompts: Sequence[Sequence[int]], vocab: int) -> None:
    """Refuses prompts that have no token to begin with, or one that is unknown."""
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(
                f"prompt {number} has no token: give each at least one, such as the"
                " one that begins a document."
            )
        marked(prompt, vocab)


def marked(tokens: Collection[int], vocab: int) -> Bool[np.ndarray, "V"]:
    """True at those tokens."""
    if outside := [token for token in tokens if not 0 <= token < vocab]:
        raise ConfigError(
            f"token {outside[0]} is none of the {vocab} that the model knows: they are"
            " counted from 0."
        )
    marked_V = np.zeros(vocab, bool)
    marked_V[list(tokens)] = True
    return marked_V


def bucketed(tokens: int) -> int:
    """The next multiple of `BUCKET`."""
    return -(-tokens // BUCKET) * BUCKET


def padded(
    prompts: Sequence[Sequence[int]], limit: int | None, first: int = 0
) -> Prompts:
    """The prompts, padded on the left to one of a few lengths, `limit` at most.

    They are numbered from `first` on.
    """
    B, width = len(prompts), bucketed(max(map(len, prompts)))
    width = width if limit is None else min(width, limit)
    tokens_BT, segments_BT = np.zeros((2, B, width), np.int32)
    for row, prompt in enumerate(prompts):
        begin = width - len(prompt)
        tokens_BT[row, begin:], segments_BT[row, begin:] = prompt, 1
    numbers_B = np.arange(first, first + B, dtype=np.int32)
    return Prompts(tokens_BT, segments_BT, numbers_B)


def prefill(
    model: Decoder,
    cache: Cache,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one text a row; the logits of what follows its last token.

    Segment 0 is padding, which may stand anywhere in a row.
    """
    live_BT = segments > 0
    positions_BT = jnp.maximum(jnp.cumsum(live_BT, axis=1) - 1, 0)
    logits_BTV, cache = model.extend(cache, tokens, positions_BT, segments)
    last_B = live_BT.shape[1] - 1 - jnp.argmax(live_BT[:, ::-1], axis=1)
    last_B11 = last_B[:, None, None]
    return jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0], cache


def begin(
    model: Decoder,
    room: int,
    made: Int[Array, ""],
    more: Int[Array, ""],
    prompts: Prompts,
) -> Going:
    """Reads the prompts into a new cache of that room; rows of padding are silent.

    `more` tokens will follow each.
    """
    tokens, segments, numbers = map(jnp.asarray, prompts)
    B, live_BT = len(tokens), segments > 0
    cache = model.cache(B, room, live_BT.sum(axis=1).max() + more)
    logits_BV, cache = prefill(model, cache, tokens, segments)
    seen_BV = jnp.zeros(logits_BV.shape, bool)
    seen_BV = seen_BV.at[jnp.arange(B)[:, None], tokens].max(live_BT)
    length_B = live_BT.sum(axis=1)
    return Going(cache, logits_BV, length_B, seen_BV, length_B > 0, numbers, made)


def step(
    model: Decoder, sampler: Sampler, seed: int, stops: Bool[Array, "V"], going: Going
) -> tuple[Going, Made]:
    """One more token in every row that has not stopped.

    A row stops after a token at which `stops` is True. The log-probability is the
    model's own, before the sampler's rules.
    """
    key = jax.random.fold_in(rng.key(seed, "sample"), going.made)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, going.numbers)
    token_B = sampler(going.logits, going.seen, keys_B).astype(jnp.int32)
    token_B = jnp.where(going.live, token_B, 0)
    log_probs_BV = jax.nn.log_softmax(going.logits, axis=-1)
    log_prob_B = jnp.take_along_axis(log_probs_BV, token_B[:, None], axis=1)[:, 0]
    made = Made(token_B, jnp.where(going.live, log_prob_B, 0), going.live)
    live_B = going.live & ~stops[token_B]
    logits_B1V, cache = model.extend(
        going.cache,
        token_B[:, None],
        going.position[:, None],
        live_B[:, None].astype(jnp.int32),
    )
    after = going._replace(
        cache=cache,
        logits=logits_B1V[:, 0],
        position=going.position + 1,
        seen=going.seen.at[jnp.arange(len(token_B)), token_B].set(True),
        live=live_B,
        made=going.made + 1,
    )
    return after, made
