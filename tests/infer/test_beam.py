"""Beam search against transformers, and against trying everything."""

import itertools
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from lmx.config.registry import ConfigError
from lmx.infer.beam import BeamConfig, BeamSearch, EarlyStopping
from lmx.layers.attention.attention import Attention
from lmx.layers.mlp import SwiGLU
from lmx.layers.position.absolute import LearnedPosition
from lmx.models.decoder import Decoder

UNTIL: dict[Any, EarlyStopping] = {True: "full", False: "likely", "never": "sure"}


def told(said):
    """The same words as lmx says them."""
    return BeamConfig(
        beams=said["num_beams"],
        length_penalty=said.get("length_penalty", 1.0),
        early_stopping=UNTIL[said.get("early_stopping", False)],
    )


def searched(llama, beam):
    graph, params = llama
    return BeamSearch(graph, params, beam)


def test_sequences_and_scores_are_those_of_transformers(llama, searches):
    """Prompts of different lengths at once; an end that is met, and one that is not."""
    prompts, stop = searches["prompts"], {searches["end"]}
    cases = [case for case in searches["searches"] if case["options"]["num_beams"] > 1]
    assert len(cases) == 7
    for case in cases:
        found = searched(llama, told(case["options"]))(prompts, 12, stop)
        for results, wanted in zip(found, case["beams"], strict=True):
            assert [r.tokens for r in results] == [tokens for tokens, _ in wanted]
            scores = [score for _, score in wanted]
            np.testing.assert_allclose([r.score for r in results], scores, 1e-4)


@pytest.fixture(scope="module")
def log_probs(llama):
    """Of each token of a row, by one pass and without a cache."""
    graph, params = llama
    forward = jax.jit(lambda row: jax.nn.log_softmax(nnx.merge(graph, params)(row)))

    def log_probs(row):
        padded = np.zeros((1, 8), np.int32)
        padded[0, : len(row)] = row
        return np.asarray(forward(padded)[0], np.float64)

    return log_probs


def everything(log_probs, prompt, tokens, stop, power):
    """Every continuation that ends as it must, best first."""
    found = []
    for row in itertools.product(range(13), repeat=tokens):
        ends = [at for at, token in enumerate(row, 1) if token in stop]
        if ends and any(row[ends[0] :]):
            continue  # counted once, with zeros after its end
        row = list(row[: ends[0]] if ends else row)
        log_prob = log_probs([*prompt, *row])
        at = range(len(prompt) - 1, len(prompt) + len(row) - 1)
        total = sum(log_prob[i, token] for i, token in zip(at, row, strict=True))
        found.append((total / len(row) ** power, row))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("power", [1.0, 0.0])
def test_a_wide_beam_finds_the_best_of_all(llama, log_probs, power):
    prompt, stop = [5, 1], {3, 9}
    wanted = everything(log_probs, prompt, 3, stop, power)[:13]
    beam = BeamConfig(beams=169, length_penalty=power, early_stopping="sure")
    (found,) = searched(llama, beam)([prompt], 3, stop)
    assert [r.tokens for r in found[:13]] == [row for _, row in wanted]
    scores = [score for score, _ in wanted]
    np.testing.assert_allclose([r.score for r in found[:13]], scores, 1e-5)


def test_one_beam_is_greedy(llama, searches):
    (case,) = [c for c in searches["searches"] if c["options"] == {"num_beams": 1}]
    found = searched(llama, BeamConfig(beams=1, early_stopping="full"))(
        searches["prompts"], 12, {searches["end"]}
    )
    assert [[r.tokens for r in each] for each in found] == [
        [tokens for tokens, _ in each] for each in case["beams"]
    ]


def test_a_prompt_is_searched_as_if_alone(llama, searches):
    search = searched(llama, BeamConfig(beams=3))
    together = search(searches["prompts"], 6, {searches["end"]})
    for prompt, wanted in zip(searches["prompts"], together, strict=True):
        (alone,) = search([prompt], 6, {searches["end"]})
        assert [r.tokens for r in alone] == [r.tokens for r in wanted]


def test_lengths_of_one_bucket_share_one_program(llama):
    search: Any = searched(llama, BeamConfig(beams=2))
    for length, tokens, stop in ((1, 3, ()), (9, 30, {1}), (64, 64, {1, 2})):
        search([[1] * length], tokens, stop)
    assert search.search._cache_size() == 1


def test_what_cannot_be_searched_is_refused(llama):
    with pytest.raises(
        ConfigError, match="BeamConfig.beams is 0: it must be 1 or more"
    ):
        BeamConfig(beams=0)
    limited = partial(LearnedPosition, max_length=16)
    model = Decoder(
        nnx.Rngs(0),
        vocab=8,
        width=8,
        depth=1,
        attention=partial(Attention, heads=2, kv_heads=1, head_dim=4, position=None),
        mlp=partial(SwiGLU, hidden=8),
        position=limited,
    )
    search = searched(nnx.split(model), BeamConfig(beams=2))
    assert len(search([[1, 2]], 14)[0][0].tokens) == 14
    with pytest.raises(ConfigError, match="2 tokens and 15 more do not fit the 16"):
        search([[1, 2]], 15)
    with pytest.raises(ConfigError, match="prompt 1 has no token"):
        searched(llama, BeamConfig())([[1], []], 3)
