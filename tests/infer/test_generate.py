"""Padded prompts and generation with a cache agree with full passes over each row."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer
from lmx.infer.beam import BeamConfig, BeamSearch
from lmx.infer.generate import Generator, encode_prompt, pad_prompts, prefill
from lmx.infer.sample import Sampler
from lmx.infer.score import compute_logprobs
from lmx.layers.attention.attention import Attention
from lmx.layers.moe.moe import ExpertChoice
from lmx.models.decoder import Decoder
from tests.hash_init import HashInit

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
GREEDY = Sampler(temperature=0.0)
LIMIT = 24
LEARNED = "Decoder.position=@LearnedPosition"
KINDS = {
    "endless": [],
    "limited": [LEARNED, f"LearnedPosition.max_length={LIMIT}"],
    "conv": ["Decoder.block=@PreNorm", "PreNorm.conv=@ShortConv"],
}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]


def make_model(kind, *words):
    """The graph and parameters of an untrained model."""
    words = ["Decoder.vocab=32", "RepeatTask.vocab=32", *KINDS[kind], *words]
    return nnx.split(
        lmx.load_experiment(TINY, words).build().model(nnx.Rngs(1), init=HashInit())
    )


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="module")
def greedy(model):
    graph, params = model
    return Generator(graph, params, GREEDY, 0)


@pytest.fixture(scope="module")
def most_likely(model):
    """The most likely next token, by one pass over a padded row, without a cache."""
    graph, params = model
    forward = jax.jit(lambda params, row: nnx.merge(graph, params)(row))

    def most_likely(context):
        width = LIMIT if nnx.merge(graph, params).max_length else 64
        row = np.zeros((1, width), np.int32)
        row[0, : len(context)] = context
        return int(forward(params, row)[0, len(context) - 1].argmax())

    return most_likely


def join(chunks):
    return np.concatenate([chunk.tokens for chunk in chunks], axis=1)


def test_greedy_tokens_equal_those_of_full_passes(greedy, most_likely):
    for prompt in PROMPTS[:2]:
        context, expected = list(prompt), []
        for _ in range(40):  # several chunks, and more than the maximum length
            if greedy.max_length and len(context) >= greedy.max_length:
                context = context[-greedy.max_length // 2 :]
            expected.append(most_likely(context))
            context.append(expected[-1])
        assert join(greedy([prompt], 40))[0].tolist() == expected


def test_prompts_of_different_lengths_do_not_affect_one_another(greedy):
    tokens = 12 if greedy.max_length else 20  # before the longest context is full
    together = join(greedy(PROMPTS, tokens))
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert row.tolist() == join(greedy([prompt], tokens))[0].tolist()


def test_a_stream_ends_before_the_stop_token(greedy):
    tokens = join(greedy([PROMPTS[0]], 20))[0].tolist()
    end = tokens[7]
    first = tokens.index(end)
    assert list(greedy.stream(PROMPTS[0], 20, {end})) == tokens[:first]
    assert list(greedy.stream(PROMPTS[0], 20)) == tokens


def test_the_number_of_tokens_is_exact(greedy):
    for tokens in (1, 16, 17):
        assert join(greedy([PROMPTS[2]], tokens)).shape == (1, tokens)


def count_programs(jitted: Any) -> int:
    return jitted._cache_size()


def test_prompts_of_one_bucket_and_all_stop_tokens_share_one_program():
    generator = Generator(*make_model("endless"), GREEDY, 0)
    for length, stop in ((1, ()), (5, {1}), (8, {2, 3})):
        join(generator([[4] * length], 10, stop))
    assert count_programs(generator.start) == count_programs(generator.decode) == 1


def test_a_context_of_one_token_is_the_last_token():
    graph, params = make_model("endless", LEARNED, "LearnedPosition.max_length=1")
    model = nnx.merge(graph, params)
    following = jax.jit(model.__call__)(jnp.arange(32)[:, None])[:, 0].argmax(axis=1)
    expected = [4]
    for _ in range(3):
        expected.append(int(following[expected[-1]]))
    found = join(Generator(graph, params, GREEDY, 0)([[3, 1, 4]], 3))
    assert found.tolist() == [expected[1:]]


def test_the_seed_and_the_row_id_alone_determine_the_samples_of_a_prompt():
    graph, params = make_model("endless")
    sampler = Sampler(temperature=2.0)
    one, other = (Generator(graph, params, sampler, seed) for seed in (1, 2))
    other.start = one.start  # it does not sample
    rows = [PROMPTS[0]] * 3
    found = [join(g(rows, 16)).tolist() for g in (one, one, other)]
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1] != found[0][2]
    later = join(one(rows, 16, first_row_id=1)).tolist()
    assert later[:2] == found[0][1:]


def test_a_prompt_starts_like_a_document():
    assert encode_prompt(ByteTokenizer(), "a") == [256, 97]
    assert encode_prompt(ByteTokenizer(), "") == [256]
    assert encode_prompt(CharTokenizer(characters="ab"), "ba") == [1, 0]
    with pytest.raises(ConfigError, match="give a prompt of at least"):
        encode_prompt(CharTokenizer(characters="ab"), "")


def test_a_row_that_stops_does_not_affect_the_others(greedy):
    free = join(greedy(PROMPTS, 12))
    stop = {int(free[0, 3])}
    chunks = list(greedy(PROMPTS, 12, stop))
    tokens, active = (
        np.concatenate([getattr(chunk, name) for chunk in chunks], axis=1)
        for name in ("tokens", "active")
    )
    logprobs = np.concatenate([chunk.logprobs for chunk in chunks], axis=1)
    for row, mask, expected in zip(tokens, active, free.tolist(), strict=True):
        stops = [at for at, token in enumerate(expected, 1) if token in stop]
        count = stops[0] if stops else 12
        assert row[mask].tolist() == expected[:count]
        assert mask.tolist() == [at < count for at in range(row.size)]
    assert not tokens[~active].any() and not logprobs[~active].any()


def test_generation_ends_when_all_rows_have_stopped(greedy):
    free = join(greedy(PROMPTS, 5))
    chunks = list(greedy(PROMPTS, 60, set(free[:, 2].tolist())))
    assert sum(chunk.tokens.shape[1] for chunk in chunks) <= 16


def test_a_model_that_is_not_causal_is_refused():
    model = Decoder(
        nnx.Rngs(0),
        init=HashInit(),
        vocab=8,
        width=8,
        depth=2,
        attention=partial(Attention, heads=2, kv_heads=1, head_dim=4),
        mlp=partial(ExpertChoice, experts=2, hidden=8, capacity_factor=1),
    )
    message = "ExpertChoice is not causal"
    graph, params = nnx.split(model)
    with pytest.raises(ConfigError, match=message):
        Generator(graph, params, GREEDY, 0)
    with pytest.raises(ConfigError, match=message):
        BeamSearch(graph, params, BeamConfig())


def test_an_empty_prompt_and_unknown_tokens_are_refused(greedy):
    with pytest.raises(ConfigError, match="prompt 1 has no token: each needs at least"):
        next(greedy([[1], []], 4))
    with pytest.raises(ConfigError, match="token 32 is not in the vocabulary of 32"):
        next(greedy([[1], [2, 32]], 4))
    with pytest.raises(ConfigError, match="token -1 is not in the vocabulary of 32"):
        next(greedy([[1]], 4, {-1}))


PADDED = [[5, 7, 1], [2, 9, 4, 11, 6, 8, 12], [10]]


def left(row, width):
    return [0] * (width - len(row)) + row


def right(row, width):
    return row + [0] * (width - len(row))


read, decode = jax.jit(prefill), jax.jit(Decoder.decode)
forward = jax.jit(lambda model, row: model(row))


@pytest.mark.parametrize("pad", [left, right])
def test_the_last_logits_of_padded_prompts_equal_those_of_full_passes(llama, pad):
    graph, params = llama
    model = nnx.merge(graph, params)
    tokens = jnp.array([pad(row, 9) for row in PADDED])
    segments = jnp.array([pad([1] * len(row), 9) for row in PADDED])
    found, cache = read(model, model.init_cache(3, 12), tokens, segments)
    token = jnp.argmax(found, axis=-1)[:, None]
    positions = jnp.array([[len(row)] for row in PADDED])
    after, _ = decode(model, cache, token, positions, jnp.ones_like(token))
    texts = zip(PADDED, token[:, 0].tolist(), strict=True)
    full = forward(model, jnp.array([right([*row, new], 9) for row, new in texts]))
    for at, prompt in enumerate(PADDED):
        last = len(prompt)
        np.testing.assert_allclose(found[at], full[at, last - 1], atol=1e-5)
        np.testing.assert_allclose(after[at, 0], full[at, last], atol=1e-5)


def test_prompts_are_padded_on_the_left_to_a_bucket():
    found = pad_prompts(PADDED, None)
    assert found.tokens.shape == (3, 64)
    assert found.tokens[1, -7:].tolist() == PADDED[1]
    assert found.segments.sum(axis=1).tolist() == [3, 7, 1]
    assert pad_prompts([[1] * 65], None).tokens.shape == (1, 128)
    assert pad_prompts(PADDED, 9).tokens.shape == (3, 9)


def test_greedy_tokens_are_those_of_transformers(llama, searches):
    """With and without a repetition penalty; rows stop at different times."""
    graph, params = llama
    end, prompts = searches["end"], searches["prompts"]
    cases = [case for case in searches["searches"] if case["options"]["num_beams"] == 1]
    assert len(cases) == 2
    for case in cases:
        penalty = case["options"].get("repetition_penalty", 1.0)
        greedy = Sampler(temperature=0.0, repetition_penalty=penalty)
        (generated,) = Generator(graph, params, greedy, 0)(prompts, 12, {end})
        assert generated.active.sum(axis=1).min() < 12
        for row, active, ((expected, _),) in zip(
            generated.tokens, generated.active, case["beams"], strict=True
        ):
            assert row[active].tolist() == expected


def test_logprobs_equal_those_of_a_full_pass(llama):
    graph, params = llama
    generator = Generator(graph, params, Sampler(temperature=2.0, top_k=3), 1)
    (generated,) = generator(PADDED, 10)
    texts = zip(PADDED, generated.tokens.tolist(), strict=True)
    rows = jnp.array([right([*prompt, *new], 17) for prompt, new in texts])
    expected = jax.jit(compute_logprobs)(nnx.merge(graph, params), rows)
    for prompt, found, row in zip(PADDED, generated.logprobs, expected, strict=True):
        first = len(prompt)
        np.testing.assert_allclose(found, row[first : first + 10], atol=1e-5)


def test_documents_in_one_row_are_scored_independently(llama):
    graph, params = llama
    model, score = nnx.merge(graph, params), jax.jit(compute_logprobs)
    row = jnp.array([[5, 7, 1, 2, 9, 4, 11, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    found = score(model, row, segments)[0]
    alone = score(model, jnp.stack([row[0], jnp.roll(row[0], -3)]))
    np.testing.assert_allclose(found[:3], alone[0, :3], atol=1e-5)
    np.testing.assert_allclose(found[3:7], alone[1, :4], atol=1e-5)
    assert found[0] == found[3] == 0 and not found[7:].any()
    assert (found[1:3] < 0).all() and (found[4:7] < 0).all()
