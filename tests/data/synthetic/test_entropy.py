"""Tests of the stated entropies, by enumeration and by sampling."""

import itertools
import math

import numpy as np
import pytest

from lmx.data.synthetic.markov import Grammar, Markov
from lmx.data.synthetic.task import Copy

MARKOVS = [
    Markov(vocab=3, order=1, batch_size=1, sequence_length=5),
    Markov(vocab=2, order=3, batch_size=1, sequence_length=7, language_seed=1),
]
GRAMMARS = [
    Grammar(vocab=4, categories=2, depth=3, batch_size=1, sequence_length=6),
    Grammar(
        vocab=5, rules=4, depth=2, batch_size=1, sequence_length=5, language_seed=3
    ),
]


def plain(probabilities):
    """-sum p log p over a list of probabilities."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def stationary(source):
    """The stationary distribution over contexts, by least squares."""
    size = source.vocab**source.order
    matrix = np.zeros((size, size))
    for context in itertools.product(range(source.vocab), repeat=source.order):
        for token, p in enumerate(source.chain.probabilities[number(source, context)]):
            matrix[number(source, context), number(source, (*context[1:], token))] += p
    still = np.concatenate([matrix.T - np.eye(size), np.ones((1, size))])
    return np.linalg.lstsq(still, np.append(np.zeros(size), 1.0))[0]


def number(source, context):
    return int(np.polyval(context, source.vocab))


@pytest.mark.parametrize("source", MARKOVS, ids=str)
def test_the_entropy_of_a_markov_source_is_that_of_all_strings(source):
    """The entropy of the context is subtracted."""
    start = stationary(source)
    probabilities = []
    for tokens in itertools.product(
        range(source.vocab), repeat=source.sequence_length + 1
    ):
        p = start[number(source, tokens[: source.order])]
        for at in range(source.order, len(tokens)):
            context = tokens[at - source.order : at]
            p *= source.chain.probabilities[number(source, context)][tokens[at]]
        probabilities.append(p)
    assert math.isclose(sum(probabilities), 1.0, rel_tol=1e-12)
    targets = int(source.batch_at(0, 0).weights.sum())
    assert targets == source.sequence_length + 1 - source.order
    exact = (plain(probabilities) - plain(start)) / targets
    assert math.isclose(source.entropy, exact, rel_tol=1e-9)


def derived(grammar, stack, size):
    """Every prefix of `size` tokens of a derivation, and its probability.

    Leftmost derivations from a list of (category, depth), the next of them last.
    """
    if not size:
        yield (), 1.0
        return
    (category, depth), rest = stack[-1], stack[:-1]
    for rule, p in enumerate(rule_probabilities(grammar, category)):
        children = grammar.children[category][rule] if depth < grammar.depth else ()
        after = rest + [(child, depth + 1) for child in reversed(children)]
        for tokens, q in derived(grammar, after or [(0, 1)], size - 1):
            yield (int(grammar.first_tokens[category, rule]), *tokens), p * q


def rule_probabilities(grammar, category):
    """The probabilities of the rules of a category."""
    (state,) = [n for n, top in enumerate(tops(grammar)) if top == category][:1]
    return grammar.chain.probabilities[state]


def tops(grammar):
    """The next category in each state, from the tokens it can emit."""
    rows = [row.tolist() for row in grammar.first_tokens]
    return [rows.index(tokens) for tokens in grammar.chain.tokens.tolist()]


@pytest.mark.parametrize("grammar", GRAMMARS, ids=str)
def test_the_entropy_of_a_grammar_is_that_of_all_strings_and_each_has_one_parse(
    grammar,
):
    found = list(derived(grammar, [(0, 1)], grammar.sequence_length + 1))
    assert len({tokens for tokens, _ in found}) == len(found)
    assert math.isclose(sum(p for _, p in found), 1.0, rel_tol=1e-12)
    first = list(derived(grammar, [(0, 1)], 1))
    whole, before = (plain([p for _, p in each]) for each in (found, first))
    exact = (whole - before) / grammar.sequence_length
    assert math.isclose(grammar.entropy, exact, rel_tol=1e-9)


def test_sentences_nest_to_the_maximum_depth():
    """With two children each at most, the longest has 2**depth - 1 tokens."""
    for depth in (1, 2, 3, 4):
        grammar = Grammar(
            vocab=6, categories=1, depth=depth, batch_size=1, sequence_length=1
        )
        longest, inside = 0, {0}
        while inside:
            longest += 1
            inside = {
                int(s) for at in inside for s in grammar.chain.next_states[at]
            } - {0}
        assert longest == 2**depth - 1


def markov_nats(source, tokens):
    """-log p of each target, from the tokens before it."""
    found = np.zeros((len(tokens), tokens.shape[1] - 1))
    for row, at in itertools.product(
        range(len(tokens)), range(source.order, tokens.shape[1])
    ):
        context = tokens[row, at - source.order : at].tolist()
        found[row, at - 1] = source.chain.probabilities[number(source, context)][
            tokens[row, at]
        ]
    return -np.log(np.where(found > 0, found, 1.0))


def grammar_nats(grammar, tokens):
    """-log p of each target, by a parser."""
    probabilities = [rule_probabilities(grammar, c) for c in range(grammar.categories)]
    found = np.zeros(tokens.shape)
    for row, row_tokens in enumerate(tokens.tolist()):
        stack = [(0, 1)]
        for at, token in enumerate(row_tokens):
            category, depth = stack.pop()
            rule = grammar.first_tokens[category].tolist().index(token)
            found[row, at] = -math.log(probabilities[category][rule])
            if depth < grammar.depth:
                after = reversed(grammar.children[category][rule])
                stack += [(child, depth + 1) for child in after]
            stack = stack or [(0, 1)]
    return found[:, 1:]


def copy_nats(source, tokens):
    half = (source.sequence_length + 1) // 2
    same = tokens[:, half + 1 :] == tokens[:, : tokens.shape[1] - half - 1]
    wrong = source.noise / (source.vocab - 1)
    found = np.zeros((len(tokens), tokens.shape[1] - 1))
    found[:, half:] = -np.log(np.where(same, 1 - source.noise + wrong, wrong))
    return found


SAMPLED = [
    (Markov(vocab=6, order=2, batch_size=128, sequence_length=64), markov_nats),
    (
        Markov(vocab=12, order=1, batch_size=128, sequence_length=64, language_seed=5),
        markov_nats,
    ),
    (Grammar(vocab=8, depth=4, batch_size=128, sequence_length=64), grammar_nats),
    (
        Grammar(
            vocab=6, categories=5, batch_size=128, sequence_length=64, language_seed=2
        ),
        grammar_nats,
    ),
    (Copy(vocab=6, noise=0.3, batch_size=128, sequence_length=64), copy_nats),
]


@pytest.mark.parametrize(
    ("source", "nats_of"), SAMPLED, ids=[f"{source}" for source, _ in SAMPLED]
)
def test_samples_have_the_stated_entropy(source, nats_of):
    """Mean of -log p over independent rows, within four standard errors."""
    batch = source.batch_at(3, 10**6)
    tokens = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    rows = (nats_of(source, tokens) * batch.weights).sum(1) / batch.weights.sum(1)
    error = rows.std(ddof=1) / math.sqrt(len(rows))
    assert 0 < error < 0.02
    assert abs(rows.mean() - source.entropy) < 4 * error


def test_probabilities_are_exact_fractions_of_draws():
    chain = Markov(vocab=4, batch_size=1, sequence_length=1, language_seed=7).chain
    for state, cuts in enumerate(chain.thresholds.tolist()):
        at = np.zeros(len(chain.initial))
        at[state] = 1.0
        begin = type(chain)(
            thresholds=chain.thresholds,
            tokens=chain.tokens,
            next_states=chain.next_states,
            initial=at,
        )
        ends = [0, *cuts, 2**32]
        draws = np.array([[low, high - 1] for low, high in itertools.pairwise(ends)])
        first = np.zeros(1, np.uint64)
        for choice, pair in enumerate(draws.astype(np.uint64)):
            for draw in pair:
                assert begin.sample(first, draw[None, None]).tolist() == [[choice]]
        parts = [(high - low) / 2**32 for low, high in itertools.pairwise(ends)]
        np.testing.assert_allclose(chain.probabilities[state], parts, rtol=1e-12)
