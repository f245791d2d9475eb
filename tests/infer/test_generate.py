"""What the cache makes is what reading everything again would make."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer
from lmx.infer.beam import BeamConfig, BeamSearch
from lmx.infer.generate import Generator, encode_prompt
from lmx.infer.sample import Sampler
from lmx.layers.attention.attention import Attention
from lmx.layers.moe.moe import ExpertChoice
from lmx.models.decoder import Decoder

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
GREEDY = Sampler(temperature=0.0)
LIMIT = 24
KINDS = {
    "endless": [],
    "limited": [
        "Decoder.position=@LearnedPosition",
        f"LearnedPosition.max_length={LIMIT}",
    ],
    "conv": ["Decoder.block=@PreNorm", "PreNorm.conv=@ShortConv"],
}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]


def made(kind):
    """The graph and parameters of an untrained model."""
    words = ["Decoder.vocab=32", "RepeatTask.vocab=32", *KINDS[kind]]
    return nnx.split(lmx.load_experiment(TINY, words).build().model(nnx.Rngs(1)))


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return made(request.param)


@pytest.fixture(scope="module")
def greedy(model):
    graph, params = model
    return Generator(graph, params, GREEDY, 0)


@pytest.fixture(scope="module")
def next_of(model):
    """The likeliest next token, by one pass over a padded row and without a cache."""
    graph, params = model
    forward = jax.jit(lambda params, row: nnx.merge(graph, params)(row))

    def next_of(context):
        width = LIMIT if nnx.merge(graph, params).max_length else 64
        row = np.zeros((1, width), np.int32)
        row[0, : len(context)] = context
        return int(forward(params, row)[0, len(context) - 1].argmax())

    return next_of


def joined(pieces):
    return np.concatenate([made.tokens for made in pieces], axis=1)


def test_greedy_tokens_are_those_of_reading_everything_again(greedy, next_of):
    for prompt in PROMPTS[:2]:
        context, wanted = list(prompt), []
        for _ in range(
            40
        ):  # more than one piece, and past the limit where there is one
            if greedy.max_length and len(context) >= greedy.max_length:
                context = context[-greedy.max_length // 2 :]
            wanted.append(next_of(context))
            context.append(wanted[-1])
        assert joined(greedy([prompt], 40))[0].tolist() == wanted


def test_prompts_of_different_lengths_do_not_disturb_one_another(greedy):
    few = (
        12 if greedy.max_length else 20
    )  # before the longest is full and the others not
    together = joined(greedy(PROMPTS, few))
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert row.tolist() == joined(greedy([prompt], few))[0].tolist()


def test_it_stops_at_the_token_that_ends(greedy):
    tokens = joined(greedy([PROMPTS[0]], 20))[0].tolist()
    end = tokens[7]
    first = tokens.index(end)
    assert list(greedy.stream(PROMPTS[0], 20, {end})) == tokens[:first]
    assert list(greedy.stream(PROMPTS[0], 20)) == tokens


def test_exactly_as_many_tokens_come_as_were_asked_for(greedy):
    for tokens in (1, 16, 17):
        assert joined(greedy([PROMPTS[2]], tokens)).shape == (1, tokens)


def cached(jitted: Any) -> int:
    """How many programs were compiled for it."""
    return jitted._cache_size()


def test_prompts_of_one_bucket_share_one_program(model):
    graph, params = model
    generator = Generator(graph, params, GREEDY, 0)
    for length in (1, 5, 8):
        joined(generator([[1] * length], 10))
    assert cached(generator.start) == cached(generator.decode) == 1


def test_a_seed_says_what_is_drawn():
    graph, params = made("endless")
    warm = Sampler(temperature=1.0)
    one, other = (Generator(graph, params, warm, seed) for seed in (1, 2))
    found = [joined(g([PROMPTS[0]], 20)).tolist() for g in (one, one, other)]
    assert found[0] == found[1] != found[2]


def test_a_prompt_begins_as_a_document_does():
    assert encode_prompt(ByteTokenizer(), "a") == [256, 97]
    assert encode_prompt(ByteTokenizer(), "") == [256]
    assert encode_prompt(CharTokenizer(characters="ab"), "ba") == [1, 0]
    with pytest.raises(ConfigError, match="give a prompt of a character or more"):
        encode_prompt(CharTokenizer(characters="ab"), "")


def test_a_row_that_stops_is_silent_and_changes_no_other(greedy):
    free = joined(greedy(PROMPTS, 12))
    stop = {int(free[0, 3])}
    pieces = list(greedy(PROMPTS, 12, stop))
    tokens, live = (
        np.concatenate([getattr(made, name) for made in pieces], axis=1)
        for name in ("tokens", "active")
    )
    logprobs = np.concatenate([made.logprobs for made in pieces], axis=1)
    for row, alive, wanted in zip(tokens, live, free.tolist(), strict=True):
        stops = [at for at, token in enumerate(wanted, 1) if token in stop]
        count = stops[0] if stops else 12
        assert row[alive].tolist() == wanted[:count]
        assert alive.tolist() == [at < count for at in range(row.size)]
    assert not tokens[~live].any() and not logprobs[~live].any()


def test_it_ends_when_all_rows_have_stopped(greedy):
    free = joined(greedy(PROMPTS, 5))
    pieces = list(greedy(PROMPTS, 1000, set(free[:, 2].tolist())))
    assert sum(made.tokens.shape[1] for made in pieces) <= 16


def test_other_stops_need_no_other_program(model):
    graph, params = model
    generator = Generator(graph, params, GREEDY, 0)
    for stop in ((), {1}, {2, 3}):
        joined(generator([[4, 5]], 3, stop))
    assert cached(generator.start) == cached(generator.decode) == 1


def test_a_model_that_looks_ahead_is_refused():
    model = Decoder(
        nnx.Rngs(0),
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


def test_a_prompt_of_nothing_or_of_unknown_tokens_is_refused(greedy):
    with pytest.raises(ConfigError, match="prompt 1 has no token: give each at least"):
        next(greedy([[1], []], 4))
    with pytest.raises(ConfigError, match="token 32 is none of the 32 that the model"):
        next(greedy([[1], [2, 32]], 4))
    with pytest.raises(ConfigError, match="token -1 is none of the 32 that the model"):
        next(greedy([[1]], 4, {-1}))


def test_a_prompt_draws_by_its_number_whatever_others_there_are():
    graph, params = made("endless")
    generator = Generator(graph, params, Sampler(temperature=2.0), 0)
    whole = joined(generator([PROMPTS[0]] * 3, 20)).tolist()
    assert whole[0] != whole[1] != whole[2]
    assert joined(generator([PROMPTS[0]] * 2, 20, first_row_id=1)).tolist() == whole[1:]
