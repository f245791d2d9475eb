"""Padded prompts and decoding agree with a full pass over each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.infer.decode import pad_prompts, prefill
from lmx.infer.generate import Generator
from lmx.infer.sample import Sampler
from lmx.infer.score import compute_logprobs

PROMPTS = [[5, 7, 1], [2, 9, 4, 11, 6, 8, 12], [10]]


def left(row, width):
    return [0] * (width - len(row)) + row


def right(row, width):
    return row + [0] * (width - len(row))


@pytest.mark.parametrize("pad", [left, right])
def test_the_last_logits_of_padded_prompts_equal_those_of_full_passes(llama, pad):
    graph, params = llama
    model = nnx.merge(graph, params)
    tokens = jnp.array([pad(row, 9) for row in PROMPTS])
    segments = jnp.array([pad([1] * len(row), 9) for row in PROMPTS])
    found, cache = jax.jit(prefill)(model, model.init_cache(3, 12), tokens, segments)
    token = jnp.argmax(found, axis=-1)[:, None]
    positions = jnp.array([[len(row)] for row in PROMPTS])
    after, _ = jax.jit(lambda model, *args: model.decode(*args))(
        model, cache, token, positions, jnp.ones_like(token)
    )
    for at, prompt in enumerate(PROMPTS):
        row = jnp.array([[*prompt, int(token[at, 0])]])
        full = jax.jit(lambda model, row: model(row))(model, row)
        np.testing.assert_allclose(found[at], full[0, -2], atol=1e-5)
        np.testing.assert_allclose(after[at, 0], full[0, -1], atol=1e-5)


def test_prompts_are_padded_on_the_left_to_a_bucket():
    found = pad_prompts(PROMPTS, None)
    assert found.tokens.shape == (3, 64)
    assert found.tokens[1, -7:].tolist() == PROMPTS[1]
    assert found.segments.sum(axis=1).tolist() == [3, 7, 1]
    assert pad_prompts([[1] * 65], None).tokens.shape == (1, 128)
    assert pad_prompts(PROMPTS, 9).tokens.shape == (3, 9)


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
    (generated,) = generator(PROMPTS, 10)
    score = jax.jit(lambda row: compute_logprobs(nnx.merge(graph, params), row))
    for prompt, tokens, found in zip(
        PROMPTS, generated.tokens, generated.logprobs, strict=True
    ):
        expected = score(jnp.array([[*prompt, *tokens.tolist()]]))[0, len(prompt) :]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_documents_in_one_row_are_scored_independently(llama):
    graph, params = llama
    score = jax.jit(lambda *row: compute_logprobs(nnx.merge(graph, params), *row))
    row = jnp.array([[5, 7, 1, 2, 9, 4, 11, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    found = score(row, segments)[0]
    np.testing.assert_allclose(found[:3], score(row[:, :3])[0], atol=1e-5)
    np.testing.assert_allclose(found[3:7], score(row[:, 3:7])[0], atol=1e-5)
    assert found[0] == found[3] == 0 and not found[7:].any()
    assert (found[1:3] < 0).all() and (found[4:7] < 0).all()
