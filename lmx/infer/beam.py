"""Beam search: the likeliest continuations that a search of fixed width finds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from lmx.config.registry import ConfigError
from lmx.infer.causal import check_causal
from lmx.infer.decode import (
    Prompts,
    check_prompts,
    pad_prompts,
    prefill,
    round_to_bucket,
    token_mask,
)
from lmx.layers.attention.kv_cache import KVCache
from lmx.models.decoder import Decoder

# When a prompt is done, once it has as many results as there are beams: at once; when
# no beam, were it to end now, would be better than the worst of them; or when none
# could be, however long. transformers' early_stopping True, False and "never".
EarlyStopping = Literal["full", "likely", "sure"]


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How to search. A result's score is its log-probability / tokens^length_penalty.

    Sutskever et al. 2014, arXiv:1409.3215, section 3.2, with the scores and the end of
    the search as transformers has them, so that both find the same.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = "likely"

    def __post_init__(self):
        if self.beams < 1:
            raise ConfigError(
                f"BeamConfig.beams is {self.beams}: it must be 1 or more."
            )


class Hypothesis(NamedTuple):
    """One continuation of a prompt, with the token that stopped it, if one did."""

    tokens: list[int]
    score: float


class Hypotheses(NamedTuple):
    """The best so far of each prompt; a score is -inf where there is none yet."""

    tokens: Int[Array, "B W T"]
    lengths: Int[Array, "B W"]
    scores: Float[Array, "B W"]


class BeamState(NamedTuple):
    """A search under way; the beams of one prompt are neighbours in M."""

    cache: KVCache
    logits: Float[Array, "M V"]  # of each beam's next token
    position: Int[Array, "M"]  # of that token
    tokens: Int[Array, "B W T"]
    scores: Float[Array, "B W"]  # log-probabilities, -inf where no beam has begun
    generated: Int[Array, ""]  # tokens of each beam
    hypotheses: Hypotheses
    unfinished: Bool[Array, "B"]  # whether a prompt's results may still get better


class BeamSearch:
    """A model's parameters and the compiled search for continuations of prompts."""

    def __init__(self, graph: nnx.GraphDef, params: PyTree, beam: BeamConfig):
        model = nnx.merge(graph, params)
        check_causal(model)
        self.graph, self.params, self.beam = graph, params, beam
        self.max_length, self.vocab = model.max_length, model.vocab
        self.search = jax.jit(self._search, static_argnames="capacity")

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_tokens: Collection[int] = (),
    ) -> list[list[Hypothesis]]:
        """The results of each prompt, best first, each of so many tokens at most.

        A continuation ends with the first of the `stop_tokens` tokens in it.
        """
        check_prompts(prompts, self.vocab)
        longest = max(map(len, prompts))
        if self.max_length and longest + max_new_tokens > self.max_length:
            raise ConfigError(
                f"a prompt of {longest} tokens and {max_new_tokens} more do not fit the"
                f" {self.max_length} that the model sees: ask for fewer."
            )
        found = self.search(
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
            for parts in zip(*map(np.asarray, found), strict=True)
        ]

    def _search(
        self,
        params: PyTree,
        prompts: Prompts,
        stops: Bool[Array, "V"],
        most: Int[Array, ""],
        *,
        capacity: int,
    ) -> Hypotheses:
        model = nnx.merge(self.graph, params)

        def searching(search: BeamState) -> Bool[Array, ""]:
            return (search.generated < most) & search.unfinished.any()

        def on(search: BeamState) -> BeamState:
            return search_step(model, self.beam, stops, most, search)

        first = start_search(model, self.beam, capacity, most, prompts)
        return jax.lax.while_loop(searching, on, first).hypotheses


def start_search(
    model: Decoder,
    beam: BeamConfig,
    capacity: int,
    max_new_tokens: Int[Array, ""],
    prompts: Prompts,
) -> BeamState:
    """Reads the prompts, which at `most` so many tokens follow; one beam has begun."""
    tokens, segments, _ = map(jnp.asarray, prompts)
    (B, T), W = tokens.shape, beam.beams
    cache = model.init_cache(
        B, T + capacity, (segments > 0).sum(axis=1).max() + max_new_tokens
    )
    logits_BV, cache = prefill(model, cache, tokens, segments)
    row_M = jnp.repeat(jnp.arange(B), W)
    none_BW = jnp.full((B, W), -jnp.inf, logits_BV.dtype)
    empty_BWT = jnp.zeros((B, W, capacity), jnp.int32)
    return BeamState(
        cache.select(row_M),
        logits_BV[row_M],
        (segments > 0).sum(axis=1)[row_M],
        empty_BWT,
        none_BW.at[:, 0].set(0),
        jnp.zeros((), jnp.int32),
        Hypotheses(empty_BWT, jnp.zeros((B, W), jnp.int32), none_BW),
        jnp.ones(B, bool),
    )


def search_step(
    model: Decoder,
    beam: BeamConfig,
    stops: Bool[Array, "V"],
    max_new_tokens: Int[Array, ""],
    state: BeamState,
) -> BeamState:
    """Every beam goes on with every token; the best end or are the next beams.

    Those that end are results; only the best W of all continuations may. At the last
    of `most` tokens all end.
    """
    (B, W, _), V = state.tokens.shape, len(stops)
    log_probs_BWV = jax.nn.log_softmax(state.logits, axis=-1).reshape(B, W, V)
    scores_BWV = state.scores[:, :, None] + log_probs_BWV
    best = select_top(state, scores_BWV)
    ends_BW = stops[best.last_tokens] | (state.generated + 1 == max_new_tokens)
    results = merge_hypotheses(beam, state, best, ends_BW & state.unfinished[:, None])
    on = select_top(state, jnp.where(stops[None, None], -jnp.inf, scores_BWV))
    row_M = (jnp.arange(B)[:, None] * W + on.beams).reshape(-1)
    newest_M1 = on.last_tokens.reshape(-1, 1)
    logits_M1V, cache = model.decode(
        state.cache.select(row_M),
        newest_M1,
        state.position[:, None],
        jnp.ones_like(newest_M1),
    )
    made = state.generated + 1
    length = (
        max_new_tokens
        if beam.early_stopping == "sure" and beam.length_penalty > 0
        else made
    )
    hope_B = on.scores[:, 0] / length**beam.length_penalty
    worst_B = results.scores[:, -1]
    better_B = (
        worst_B == -jnp.inf if beam.early_stopping == "full" else hope_B > worst_B
    )
    return BeamState(
        cache,
        logits_M1V[:, 0],
        state.position + 1,
        on.tokens,
        on.scores,
        made,
        results,
        state.unfinished & better_B,
    )


class Candidates(NamedTuple):
    """The best W continuations of a prompt by one token."""

    scores: Float[Array, "B W"]
    beams: Int[Array, "B W"]  # which of the prompt's each continues
    last_tokens: Int[Array, "B W"]
    tokens: Int[Array, "B W T"]  # with the newest


def select_top(state: BeamState, scores: Float[Array, "B W V"]) -> Candidates:
    """The best by those scores of each beam with each token."""
    B, W, V = scores.shape
    best_BW, at_BW = jax.lax.top_k(scores.reshape(B, W * V), W)
    beam_BW, newest_BW = jnp.divmod(at_BW, V)
    tokens_BWT = jnp.take_along_axis(state.tokens, beam_BW[:, :, None], axis=1)
    tokens_BWT = tokens_BWT.at[:, :, state.generated].set(newest_BW)
    return Candidates(best_BW, beam_BW, newest_BW, tokens_BWT)


def merge_hypotheses(
    beam: BeamConfig, state: BeamState, candidates: Candidates, ends: Bool[Array, "B W"]
) -> Hypotheses:
    """The best W of the results so far and of the continuations that end."""
    made = state.generated + 1
    scores_BW = candidates.scores / made**beam.length_penalty
    new = Hypotheses(
        candidates.tokens,
        jnp.full_like(state.hypotheses.lengths, made),
        jnp.where(ends, scores_BW, -jnp.inf),
    )
    both = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1), state.hypotheses, new
    )
    scores_BW, at_BW = jax.lax.top_k(both.scores, beam.beams)
    return Hypotheses(
        jnp.take_along_axis(both.tokens, at_BW[:, :, None], axis=1),
        jnp.take_along_axis(both.lengths, at_BW, axis=1),
        scores_BW,
    )
