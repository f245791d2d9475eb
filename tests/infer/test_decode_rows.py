"""Rows of a decoding batch that come and go do not affect one another."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.core.precision import Precision
from lmx.infer.generate import (
    Prompts,
    decode_step,
    empty_state,
    pad_prompts,
    read_prompts,
)
from lmx.infer.sample import Sampler
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.infini import InfiniAttention
from lmx.layers.attention.mla import MLA
from lmx.layers.conv import ShortConv
from lmx.layers.mlp import SwiGLU
from lmx.layers.rope import DynamicNTK
from lmx.models.block import PreNorm
from lmx.models.decoder import Decoder
from tests.hash_init import HashInit

V, ROWS, BUCKET, CAPACITY, WINDOW = 11, 3, 8, 16, 3
UNUSED = "unused"
DENSE = partial(Attention, heads=4, kv_heads=2, head_dim=4)
RING = partial(DENSE, window=WINDOW)
LATENT = partial(MLA, heads=4, kv_rank=6, head_dim=4, rope_dim=2, value_dim=3)
INFINI = partial(InfiniAttention, heads=4, kv_heads=2, head_dim=4, segment_length=3)
MIXED = "infini, stretched positions, and convolutions"
SLOTS = "dense, ring and latent"
KINDS = {
    SLOTS: (DENSE, RING, LATENT),
    MIXED: partial(INFINI, position=DynamicNTK(factor=3.0, trained_length=4)),
}
PREFIX = [3, 1, 4, 1, 5]
# Prompt, whether it continues PREFIX, tokens to generate, and the step of its arrival.
REQUESTS = [
    ([2, 7], True, 5, 0),
    ([9, 2, 6, 5, 3, 5, 8], False, 3, 0),
    ([10], True, 6, 1),
    ([8, 9, 7, 9], False, 6, 2),  # waits for a row
    ([4], True, 4, 3),
]
SAMPLER = Sampler(temperature=1.5, repetition_penalty=1.3)


@pytest.fixture(scope="module", autouse=True)
def exact():
    """Runs in float64, where rounding does not hide errors."""
    with jax.enable_x64(True):
        yield


@cache
def make_model(attention, conv=None):
    return Decoder(
        nnx.Rngs(0),
        vocab=V,
        width=16,
        depth=len(attention) if isinstance(attention, tuple) else 2,
        attention=attention,
        mlp=partial(SwiGLU, hidden=16),
        block=partial(PreNorm, conv=conv),
        precision=Precision(params="float64", compute="float64"),
        init=HashInit(),
    )


class Batch:
    """A model, and its compiled functions of decoding."""

    def __init__(self, kind):
        conv = partial(ShortConv, reach=2) if kind == MIXED else None
        self.kind, self.model = kind, make_model(KINDS[kind], conv)
        self.start = jax.jit(
            lambda model, length: empty_state(
                model, model.init_cache(1, BUCKET, length)
            )
        )
        self.read = jax.jit(read_prompts)
        self.step = jax.jit(partial(decode_step, sampler=SAMPLER, seed=0))
        self.insert = jax.jit(lambda state, *args: state.insert(*args))
        self.evict = jax.jit(lambda state, *args: state.evict(*args))
        self.select = jax.jit(lambda state, *args: state.select(*args))
        self.full = jax.jit(lambda model, tokens: model(tokens))

    def prefill(self, number):
        """The state after the prompt of a request, which may continue the prefix."""
        prompt, shared, count, _ = REQUESTS[number]
        length = len(PREFIX) * shared + len(prompt) + count
        state = self.start(self.model, length)
        if shared:
            state = self.select(self.prefix, jnp.array([0]))
        return self.read(self.model, state, pad([prompt], number))

    def serve(self, numbers, first_row=0):
        """Tokens, logits and row of each request, decoded in rows as they get free."""
        length = len(PREFIX) + 8
        self.prefix = self.read(
            self.model, self.start(self.model, length), pad([PREFIX])
        )
        cache = self.model.init_cache(ROWS, CAPACITY)
        state = empty_state(self.model, cache)
        rows: list[Any] = [None] * ROWS
        rows[:first_row] = [UNUSED] * first_row
        waiting, found, time = list(numbers), {}, 0
        while waiting or set(rows) - {None, UNUSED}:
            while None in rows and waiting and REQUESTS[waiting[0]][3] <= time:
                row, number = rows.index(None), waiting.pop(0)
                new, found[number] = self.prefill(number), ([], [], row)
                state, rows[row] = self.insert(state, jnp.array([row]), new), number
            logits = np.asarray(state.logits)
            state, new = self.step(self.model, stops=jnp.zeros(V, bool), state=state)
            for row, number in enumerate(rows):
                if number in (None, UNUSED):
                    continue
                tokens, before, _ = found[number]
                tokens.append(int(new.tokens[row]))
                before.append(logits[row])
                if len(tokens) == REQUESTS[number][2]:
                    state, rows[row] = self.evict(state, jnp.array([row])), None
            time += 1
        return found


def pad(prompts, first_row_id=0):
    padded = pad_prompts(prompts, BUCKET, first_row_id)
    return Prompts(*map(jnp.asarray, padded))


@pytest.fixture(scope="module", params=KINDS)
def batch(request, exact):
    return Batch(request.param)


@pytest.fixture(scope="module")
def together(batch):
    return batch.serve(range(len(REQUESTS)))


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_row_among_others_equals_the_row_alone_to_the_bit(batch, together, number):
    """Alone in the same row: products of matrices round the last rows differently."""
    tokens, logits, row = together[number]
    alone = batch.serve([number], row)[number]
    assert (tokens, row) == (alone[0], alone[2])
    np.testing.assert_array_equal(logits, alone[1])


def test_a_row_is_read_in_place_after_another_that_was_not_finite(batch):
    """It equals the row alone to the bit, and the other rows go on."""

    def decode(state, steps, found):
        for _ in range(steps):
            state, new = batch.step(batch.model, stops=jnp.zeros(V, bool), state=state)
            found.append((new.tokens[1], state.logits[1]))
        return state

    model, late = batch.model, pad([[], [7, 3], []], 4)
    empty = empty_state(model, model.init_cache(ROWS, CAPACITY))
    state = decode(batch.read(model, empty, pad([[1], [2], [3]])), 1, [])
    layers = jax.tree.map(lambda x: x.at[:, 1].set(jnp.nan), state.cache.layers)
    state = state._replace(cache=state.cache._replace(layers=layers))
    state = decode(batch.evict(decode(state, 1, []), jnp.array([1])), 1, [])
    among, alone = [], []
    last = decode(batch.read(model, state, late), 2, among)
    decode(batch.read(model, empty, late), 2, alone)
    chex.assert_trees_all_equal(among, alone)
    assert jnp.isfinite(last.logits).all()
    assert last.cache.lengths.tolist() == [6, 4, 6]


def test_the_logits_of_each_row_equal_those_of_a_full_pass(batch, together):
    if batch.kind == MIXED:
        return  # the length of a full pass, with padding, would stretch the positions
    for (prompt, shared, count, _), (tokens, logits, _) in zip(
        REQUESTS, together.values(), strict=True
    ):
        text = PREFIX * shared + prompt + tokens[:-1]
        row = jnp.array([text + [0] * (CAPACITY - len(text))])
        want = batch.full(batch.model, row)[0, len(text) - count : len(text)]
        np.testing.assert_allclose(logits, want, atol=1e-9)


TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, V, (2, 9)), "int32")


@jax.jit
def extend(model, cache, tokens):
    """Logits of three more tokens in every row, and the cache with them."""
    index = jnp.arange(3, dtype="int32")
    positions = cache.lengths[:, None] + index[None]
    return model.decode(cache, tokens, positions, jnp.ones_like(tokens))


def test_removed_tokens_leave_no_trace():
    """Rows of 6 tokens, cut to 4 and to 5, continue as if they had been read so far."""
    model = make_model(KINDS[SLOTS])
    cache = model.init_cache(2, CAPACITY, rollback=2)
    for start in (0, 3):
        _, cache = extend(model, cache, TOKENS[:, start : start + 3])
    cache = cache.truncate(jnp.array([0, 1]), jnp.array([4, 5]))
    got, after = extend(model, cache, TOKENS[:, 6:])
    assert after.lengths.tolist() == [7, 8]
    last = TOKENS[:, 6:]
    texts = jnp.stack(
        [
            jnp.concatenate([TOKENS[0, :4], last[0], last[0, :1]]),
            jnp.concatenate([TOKENS[1, :5], last[1]]),
        ]
    )
    want = jax.jit(lambda model, texts: model(texts))(model, texts)
    np.testing.assert_allclose(got[0], want[0, 4:7], atol=1e-9)
    np.testing.assert_allclose(got[1], want[1, 5:8], atol=1e-9)


def make_cache(lengths, attention=RING, conv=None, capacity=CAPACITY, **size):
    """A cache as after this number of tokens in each row."""
    model = make_model(attention, conv)
    empty = jax.jit(lambda: model.init_cache(len(lengths), capacity, **size))()
    return empty._replace(lengths=jnp.array(lengths, "int32"))


def test_a_ring_buffer_refuses_to_return_to_tokens_that_it_has_overwritten():
    cache, rows = make_cache([6, 6]), jnp.array([1])
    message = r"3 slots for a window of 3 tokens .* newest 1 of \[6\] tokens, and \[4\]"
    with pytest.raises(ConfigError, match=message):
        cache.truncate(rows, jnp.array([4]))
    with pytest.raises(ConfigError, match=message):  # in two steps
        cache.truncate(rows, jnp.array([5])).truncate(rows, jnp.array([4]))
    cache = make_cache([6, 6], rollback=1)
    assert cache.truncate(rows, jnp.array([4])).lengths.tolist() == [6, 4]
    cache = make_cache([3, 3])  # nothing is overwritten yet
    assert cache.truncate(rows, jnp.array([0])).lengths.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("name", "attention", "conv"),
    [("InfiniMemory", INFINI, None), ("ConvMemory", DENSE, ShortConv)],
)
def test_a_state_that_mixes_tokens_refuses_to_remove_some(name, attention, conv):
    cache = make_cache([6], attention, conv)
    with pytest.raises(ConfigError, match=f"{name} cannot remove tokens, since it"):
        cache.truncate(jnp.array([0]), jnp.array([5]))


def test_a_prefill_that_does_not_fit_is_refused():
    cache, rows = make_cache([1, 2]), jnp.array([0, 1])
    assert cache.insert(rows, make_cache([5, 4], capacity=5)).lengths.tolist() == [5, 4]
    for target, other in (
        (make_cache([1, 2], capacity=5), cache),  # larger
        (cache, make_cache([6, 4], capacity=5)),  # tokens that are no longer there
        (cache, make_cache([1, 2], rollback=1)),  # other slots
    ):
        message = f"in a cache for {other.capacity} do not fit into one for"
        with pytest.raises(ConfigError, match=message):
            target.insert(rows, other)


def test_rows_beyond_the_last_are_not_inserted():
    got = make_cache([6, 6]).insert(jnp.array([1, 2]), make_cache([8, 9]))
    assert got.lengths.tolist() == [6, 8]
