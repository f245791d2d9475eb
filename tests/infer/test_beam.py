"""Beam search against transformers, and against trying everything."""

import itertools
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.infer.beam import BeamConfig, BeamSearch
from lmx.layers.attention.attention import Attention
from lmx.layers.mlp import SwiGLU
from lmx.layers.position import LearnedPosition
from lmx.models.decoder import Decoder
from tests.hash_init import HashInit


def make_search(llama, **fields):
    graph, params = llama
    return BeamSearch(graph, params, BeamConfig(**fields))


@pytest.mark.parametrize(
    "number",
    [0, 4, 5, 6, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3))],
)
def test_sequences_and_scores_are_those_of_transformers(llama, searches, number):
    """Prompts of different lengths, with and without a stop token that occurs."""
    prompts, stop = searches["prompts"], {searches["end"]}
    cases = [case for case in searches["searches"] if case["options"]["num_beams"] > 1]
    assert len(cases) == 7
    beams, *options = cases[number]["options"].items()
    search = make_search(llama, beams=beams[1], **dict(options))
    for found, expected in zip(
        search(prompts, 12, stop), cases[number]["beams"], strict=True
    ):
        assert [h.tokens for h in found] == [tokens for tokens, _ in expected]
        scores = [score for _, score in expected]
        np.testing.assert_allclose([h.score for h in found], scores, 1e-4)


PROMPT, STOP = [5, 1], {3, 9}


@pytest.fixture(scope="module")
def continuations(llama):
    """Every continuation by 3 tokens, and its log-probability without a cache."""
    graph, params = llama
    rows = np.array(list(itertools.product(range(13), repeat=3)))
    full = np.concatenate([np.broadcast_to(PROMPT, (len(rows), 2)), rows], axis=1)
    forward = jax.jit(lambda row: jax.nn.log_softmax(nnx.merge(graph, params)(row)))
    logprobs = np.asarray(forward(full)[:, 1:-1], np.float64)
    found = []
    for row, logprob in zip(rows.tolist(), logprobs, strict=True):
        ends = [at for at, token in enumerate(row, 1) if token in STOP]
        if ends and any(row[ends[0] :]):
            continue  # counted once, with zeros after its end
        row = row[: ends[0]] if ends else row
        found.append((sum(logprob[range(len(row)), row]), row))
    return found


@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_a_wide_beam_finds_the_best_of_all_continuations(llama, continuations, penalty):
    scored = [(total / len(row) ** penalty, row) for total, row in continuations]
    expected = sorted(scored, reverse=True)[:13]
    search = make_search(
        llama, beams=169, length_penalty=penalty, early_stopping="never"
    )
    (found,) = search([PROMPT], 3, STOP)
    assert [h.tokens for h in found[:13]] == [row for _, row in expected]
    scores = [score for score, _ in expected]
    np.testing.assert_allclose([h.score for h in found[:13]], scores, 1e-5)


def test_one_beam_is_greedy(llama, searches):
    (case,) = [c for c in searches["searches"] if c["options"] == {"num_beams": 1}]
    search = make_search(llama, beams=1, early_stopping=True)
    found = search(searches["prompts"], 12, {searches["end"]})
    assert [[h.tokens for h in each] for each in found] == [
        [tokens for tokens, _ in each] for each in case["beams"]
    ]


def test_the_search_of_a_prompt_does_not_depend_on_others(llama, searches):
    search, stop = make_search(llama, beams=3), {searches["end"]}
    together = search(searches["prompts"], 6, stop)
    for prompt, expected in zip(searches["prompts"], together, strict=True):
        (alone,) = search([prompt], 6, stop)
        assert [h.tokens for h in alone] == [h.tokens for h in expected]


def test_lengths_of_one_bucket_share_one_program(llama):
    search: Any = make_search(llama, beams=2)
    for length, tokens, stop in ((1, 3, ()), (9, 30, {1}), (64, 64, {1, 2})):
        search([[1] * length], tokens, stop)
    assert search.search._cache_size() == 1


def test_invalid_searches_are_refused(llama):
    with pytest.raises(
        ConfigError, match="BeamConfig.beams is 0: it must be 1 or more"
    ):
        BeamConfig(beams=0)
    position = partial(LearnedPosition, max_length=16)
    model = Decoder(
        nnx.Rngs(0),
        init=HashInit(),
        vocab=8,
        width=8,
        depth=1,
        attention=partial(Attention, heads=2, kv_heads=1, head_dim=4, position=None),
        mlp=partial(SwiGLU, hidden=8),
        position=position,
    )
    search = make_search(nnx.split(model), beams=2)
    assert len(search([[1, 2]], 14)[0][0].tokens) == 14
    with pytest.raises(ConfigError, match="2 tokens and 15 new ones exceed"):
        search([[1, 2]], 15)
    with pytest.raises(ConfigError, match="prompt 1 has no token"):
        make_search(llama)([[1], []], 3)
