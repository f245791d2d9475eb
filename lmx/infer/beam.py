"""Beam search: the most likely continuations that a search of fixed width finds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.registry import require
from lmx.infer.generate import (
    Prompts,
    check_causal,
    check_prompts,
    pad_prompts,
    prefill,
    round_to_bucket,
    token_mask,
)
from lmx.layers.attention.kv_cache import KVCache
from lmx.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Width and scores of beam search: log-probability / tokens^length_penalty.

    Sutskever et al. 2014, arXiv:1409.3215, section 3.2. Scores and the end of the
    search are those of Hugging Face transformers.

    Attributes:
        early_stopping: when to stop once a prompt has as many hypotheses as beams.
            True: at once; False: when no beam, if it ended now, would be better than
            the worst of them; "never": when no beam can become better.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self):
        require(
            self.beams >= 1, f"BeamConfig.beams is {self.beams}: it must be 1 or more."
        )


class Hypothesis(NamedTuple):
    """A continuation of a prompt, with its stop token if it has one."""

    tokens: list[int]
    score: float


class Hypotheses(NamedTuple):
    """The best finished continuations of each prompt; unused ones score -inf."""

    tokens: Int[Array, "B W T"]
    lengths: Int[Array, "B W"]
    scores: Float[Array, "B W"]


class BeamState(NamedTuple):
    """The state of a search; the beams of one prompt are adjacent in M."""

    cache: KVCache
    logits: Float[Array, "M V"]  # of the next token
    position: Int[Array, "M"]  # of the next token
    tokens: Int[Array, "B W T"]
    scores: Float[Array, "B W"]  # log-probabilities; -inf for unused beams
    generated: Int[Array, ""]  # tokens of each beam
    hypotheses: Hypotheses
    unfinished: Bool[Array, "B"]  # whether better hypotheses are possible


class Candidates(NamedTuple):
    """The best W continuations of a prompt by one token."""

    scores: Float[Array, "B W"]
    beams: Int[Array, "B W"]  # the beam that each continues
    last_tokens: Int[Array, "B W"]
    tokens: Int[Array, "B W T"]


class BeamSearch:
    """A model's parameters, and the compiled search for continuations of prompts."""

    def __init__(self, graph: nnx.GraphDef, params: PyTree, beam: BeamConfig):
        model = nnx.merge(graph, params)
        check_causal(model)
        self.params, self.max_length, self.vocab = params, model.max_length, model.vocab
        self.search = jax.jit(
            partial(search_beams, graph, beam), static_argnames="capacity"
        )

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_tokens: Collection[int] = (),
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each prompt, best first.

        Each ends with a stop token, or has `max_new_tokens` tokens.
        """
        check_prompts(prompts, self.vocab)
        longest = max(map(len, prompts))
        require(
            not self.max_length or longest + max_new_tokens <= self.max_length,
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the"
            f" maximum length of {self.max_length} of the model: ask for fewer.",
        )
        hypotheses = self.search(
            self.params,
            pad_prompts(prompts, self.max_length),
            token_mask(stop_tokens, self.vocab),
            np.int32(max_new_tokens),
            capacity=round_to_bucket(max_new_tokens),
        )
        return [
            [
                Hypothesis(row[:length].tolist(), float(score))
                for row, length, score in zip(*parts, strict=True)
                if score > -np.inf
            ]
            for parts in zip(*map(np.asarray, hypotheses), strict=True)
        ]


def search_beams(
    graph: nnx.GraphDef,
    beam: BeamConfig,
    params: PyTree,
    prompts: Prompts,
    stops: Bool[Array, "V"],
    max_new_tokens: Int[Array, ""],
    *,
    capacity: int,
) -> Hypotheses:
    """Searches with a cache for `capacity` tokens after each prompt."""
    model = nnx.merge(graph, params)
    tokens, segments, _ = map(jnp.asarray, prompts)
    (B, T), W, length_B = tokens.shape, beam.beams, (segments > 0).sum(axis=1)
    cache = model.init_cache(B, T + capacity, length_B.max() + max_new_tokens)
    logits_BV, cache = prefill(model, cache, tokens, segments)
    row_M = jnp.repeat(jnp.arange(B), W)
    unused_BW = jnp.full((B, W), -jnp.inf, logits_BV.dtype)
    empty_BWT = jnp.zeros((B, W, capacity), jnp.int32)
    state = BeamState(
        cache.select(row_M),
        logits_BV[row_M],
        length_B[row_M],
        empty_BWT,
        unused_BW.at[:, 0].set(0),  # the first beam of each prompt
        jnp.zeros((), jnp.int32),
        Hypotheses(empty_BWT, jnp.zeros((B, W), jnp.int32), unused_BW),
        jnp.ones(B, bool),
    )

    def is_unfinished(state: BeamState) -> Bool[Array, ""]:
        return (state.generated < max_new_tokens) & state.unfinished.any()

    step = partial(search_step, model, beam, stops, max_new_tokens)
    return jax.lax.while_loop(is_unfinished, step, state).hypotheses


def search_step(
    model: Decoder,
    beam: BeamConfig,
    stops: Bool[Array, "V"],
    max_new_tokens: Int[Array, ""],
    state: BeamState,
) -> BeamState:
    """Extends every beam by every token; the best W of them end or are the new beams.

    Continuations with a stop token become hypotheses if they are among the best W.
    """
    (B, W, _), V, generated = state.tokens.shape, len(stops), state.generated + 1
    logprobs_BWV = jax.nn.log_softmax(state.logits, axis=-1).reshape(B, W, V)
    scores_BWV = state.scores[:, :, None] + logprobs_BWV
    best = select_top(state, scores_BWV)
    ends_BW = stops[best.last_tokens] | (generated == max_new_tokens)
    ends_BW &= state.unfinished[:, None]
    hypotheses = merge_hypotheses(beam, state, best, ends_BW)
    beams = select_top(state, jnp.where(stops[None, None], -jnp.inf, scores_BWV))
    row_M = (jnp.arange(B)[:, None] * W + beams.beams).reshape(-1)
    token_M1 = beams.last_tokens.reshape(-1, 1)
    logits_M1V, cache = model.decode(
        state.cache.select(row_M),
        token_M1,
        state.position[:, None],
        jnp.ones_like(token_M1),
    )
    longest = beam.early_stopping == "never" and beam.length_penalty > 0
    length = max_new_tokens if longest else generated
    possible_B = beams.scores[:, 0] / length**beam.length_penalty
    worst_B = hypotheses.scores[:, -1]
    full = beam.early_stopping is True
    better_B = worst_B == -jnp.inf if full else possible_B > worst_B
    return BeamState(
        cache,
        logits_M1V[:, 0],
        state.position + 1,
        beams.tokens,
        beams.scores,
        generated,
        hypotheses,
        state.unfinished & better_B,
    )


def select_top(state: BeamState, scores: Float[Array, "B W V"]) -> Candidates:
    """The W continuations with the highest scores."""
    B, W, V = scores.shape
    best_BW, index_BW = jax.lax.top_k(scores.reshape(B, W * V), W)
    beam_BW, token_BW = jnp.divmod(index_BW, V)
    tokens_BWT = jnp.take_along_axis(state.tokens, beam_BW[:, :, None], axis=1)
    tokens_BWT = tokens_BWT.at[:, :, state.generated].set(token_BW)
    return Candidates(best_BW, beam_BW, token_BW, tokens_BWT)


def merge_hypotheses(
    beam: BeamConfig, state: BeamState, candidates: Candidates, ends: Bool[Array, "B W"]
) -> Hypotheses:
    """The best W of the hypotheses so far and of the candidates that end."""
    length = state.generated + 1
    scores_BW = candidates.scores / length**beam.length_penalty
    new = Hypotheses(
        candidates.tokens,
        jnp.full_like(state.hypotheses.lengths, length),
        jnp.where(ends, scores_BW, -jnp.inf),
    )
    both = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1), state.hypotheses, new
    )
    scores_BW, index_BW = jax.lax.top_k(both.scores, beam.beams)
    return Hypotheses(
        jnp.take_along_axis(both.tokens, index_BW[:, :, None], axis=1),
        jnp.take_along_axis(both.lengths, index_BW, axis=1),
        scores_BW,
    )
