"""Prompts of any length, padded anywhere, are read as if each were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.infer.decode import pad_prompts, prefill
from lmx.infer.generate import Generator
from lmx.infer.sample import Sampler
from lmx.infer.score import logprobs

PROMPTS = [[5, 7, 1], [2, 9, 4, 11, 6, 8, 12], [10]]


def left(row, width):
    return [0] * (width - len(row)) + row


def right(row, width):
    return row + [0] * (width - len(row))


@pytest.mark.parametrize("pad", [left, right])
def test_the_last_logits_of_padded_prompts_are_those_of_full_passes(llama, pad):
    graph, params = llama
    model = nnx.merge(graph, params)
    tokens = jnp.array([pad(row, 9) for row in PROMPTS])
    segments = jnp.array([pad([1] * len(row), 9) for row in PROMPTS])
    found, cache = jax.jit(prefill)(model, model.init_cache(3, 12), tokens, segments)
    newest = jnp.argmax(found, axis=-1)[:, None]
    positions = jnp.array([[len(row)] for row in PROMPTS])
    after, _ = jax.jit(lambda model, *args: model.decode(*args))(
        model, cache, newest, positions, jnp.ones_like(newest)
    )
    for at, prompt in enumerate(PROMPTS):
        row = jnp.array([[*prompt, int(newest[at, 0])]])
        whole = jax.jit(lambda model, row: model(row))(model, row)
        np.testing.assert_allclose(found[at], whole[0, -2], atol=1e-5)
        np.testing.assert_allclose(after[at, 0], whole[0, -1], atol=1e-5)


def test_prompts_end_together_in_one_of_few_lengths():
    found = pad_prompts(PROMPTS, None)
    assert found.tokens.shape == (3, 64)
    assert found.tokens[1, -7:].tolist() == PROMPTS[1]
    assert found.segments.sum(axis=1).tolist() == [3, 7, 1]
    assert pad_prompts([[1] * 65], None).tokens.shape == (1, 128)
    assert pad_prompts(PROMPTS, 9).tokens.shape == (3, 9)


def test_greedy_tokens_are_those_of_transformers(llama, searches):
    """With and without a penalty for repetition; rows stop at different times."""
    graph, params = llama
    end, prompts = searches["end"], searches["prompts"]
    cases = [case for case in searches["searches"] if case["options"]["num_beams"] == 1]
    assert len(cases) == 2
    for case in cases:
        penalty = case["options"].get("repetition_penalty", 1.0)
        greedy = Sampler(temperature=0.0, repetition_penalty=penalty)
        (made,) = Generator(graph, params, greedy, 0)(prompts, 12, {end})
        assert made.active.sum(axis=1).min() < 12
        for row, live, ((wanted, _),) in zip(
            made.tokens, made.active, case["beams"], strict=True
        ):
            assert row[live].tolist() == wanted


def test_log_probabilities_are_those_that_a_full_pass_gives_the_same_tokens(llama):
    graph, params = llama
    warm = Generator(graph, params, Sampler(temperature=2.0, top_k=3), 1)
    (made,) = warm(PROMPTS, 10)
    score = jax.jit(lambda row: logprobs(nnx.merge(graph, params), row))
    for prompt, tokens, found in zip(PROMPTS, made.tokens, made.logprobs, strict=True):
        wanted = score(jnp.array([[*prompt, *tokens.tolist()]]))[0, len(prompt) :]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_documents_of_a_row_are_scored_as_if_alone(llama):
    graph, params = llama
    score = jax.jit(lambda *row: logprobs(nnx.merge(graph, params), *row))
    row = jnp.array([[5, 7, 1, 2, 9, 4, 11, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    found = score(row, segments)[0]
    np.testing.assert_allclose(found[:3], score(row[:, :3])[0], atol=1e-5)
    np.testing.assert_allclose(found[3:7], score(row[:, 3:7])[0], atol=1e-5)
    assert found[0] == found[3] == 0 and not found[7:].any()
    assert (found[1:3] < 0).all() and (found[4:7] < 0).all()
