"""The stated entropies, against every string there is and against long runs of luck."""

import itertools
import math

import numpy as np
import pytest

from lmx.data.synthetic.grammar import Grammar
from lmx.data.synthetic.markov import Markov
from lmx.data.synthetic.repeat import Copy

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


def plain(chances):
    """-sum p log p over a list of chances."""
    return -sum(p * math.log(p) for p in chances if p > 0)


def stationary(source):
    """The chance of each context, which the whole transition matrix keeps."""
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
def test_a_markov_source_has_the_entropy_of_all_its_strings(source):
    """Less that of the context it is the entropy of the targets, given all before."""
    start = stationary(source)
    chances = []
    for said in itertools.product(range(source.vocab), repeat=source.length + 1):
        p = start[number(source, said[: source.order])]
        for at in range(source.order, len(said)):
            context = said[at - source.order : at]
            p *= source.chain.probabilities[number(source, context)][said[at]]
        chances.append(p)
    assert math.isclose(sum(chances), 1.0, rel_tol=1e-12)
    targets = int(source.batch_at(0, 0).weights.sum())
    assert targets == source.length + 1 - source.order
    exact = (plain(chances) - plain(start)) / targets
    assert math.isclose(source.entropy, exact, rel_tol=1e-9)


def derived(grammar, stack, size):
    """Every string of `size` tokens that derivations begin with, and its chance.

    Leftmost derivations from a list of (category, depth), the next of them last.
    """
    if not size:
        yield (), 1.0
        return
    (category, depth), rest = stack[-1], stack[:-1]
    for rule, p in enumerate(rule_chances(grammar, category)):
        children = grammar.children[category][rule] if depth < grammar.depth else ()
        after = rest + [(child, depth + 1) for child in reversed(children)]
        for said, q in derived(grammar, after or [(0, 1)], size - 1):
            yield (int(grammar.first_tokens[category, rule]), *said), p * q


def rule_chances(grammar, category):
    """The chances of the rules of a category, from a state in which it comes next."""
    (state,) = [n for n, top in enumerate(tops(grammar)) if top == category][:1]
    return grammar.chain.probabilities[state]


def tops(grammar):
    """The category that comes next in each state, told by the tokens it may say."""
    rows = [row.tolist() for row in grammar.first_tokens]
    return [rows.index(said) for said in grammar.chain.tokens.tolist()]


@pytest.mark.parametrize("grammar", GRAMMARS, ids=str)
def test_a_grammar_has_the_entropy_of_all_its_strings_and_one_reading_of_each(grammar):
    found = list(derived(grammar, [(0, 1)], grammar.length + 1))
    assert len({said for said, _ in found}) == len(found)
    assert math.isclose(sum(p for _, p in found), 1.0, rel_tol=1e-12)
    first = list(derived(grammar, [(0, 1)], 1))
    whole, before = (plain([p for _, p in each]) for each in (found, first))
    exact = (whole - before) / grammar.length
    assert math.isclose(grammar.entropy, exact, rel_tol=1e-9)


def test_a_sentence_nests_as_deep_as_it_may_and_no_deeper():
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


def markov_nats(source, said):
    """Minus the log of each target's chance, read off the tokens before it."""
    found = np.zeros((len(said), said.shape[1] - 1))
    for row, at in itertools.product(
        range(len(said)), range(source.order, said.shape[1])
    ):
        context = said[row, at - source.order : at].tolist()
        found[row, at - 1] = source.chain.probabilities[number(source, context)][
            said[row, at]
        ]
    return -np.log(np.where(found > 0, found, 1.0))


def grammar_nats(grammar, said):
    """The same, by a parser that knows the grammar alone."""
    chances = [rule_chances(grammar, c) for c in range(grammar.categories)]
    found = np.zeros(said.shape)
    for row, tokens in enumerate(said.tolist()):
        stack = [(0, 1)]
        for at, token in enumerate(tokens):
            category, depth = stack.pop()
            rule = grammar.first_tokens[category].tolist().index(token)
            found[row, at] = -math.log(chances[category][rule])
            if depth < grammar.depth:
                after = reversed(grammar.children[category][rule])
                stack += [(child, depth + 1) for child in after]
            stack = stack or [(0, 1)]
    return found[:, 1:]


def copy_nats(source, said):
    half = (source.length + 1) // 2
    same = said[:, half + 1 :] == said[:, : said.shape[1] - half - 1]
    wrong = source.noise / (source.vocab - 1)
    found = np.zeros((len(said), said.shape[1] - 1))
    found[:, half:] = -np.log(np.where(same, 1 - source.noise + wrong, wrong))
    return found


LUCK = [
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
    ("source", "nats_of"), LUCK, ids=[f"{source}" for source, _ in LUCK]
)
def test_what_is_said_costs_the_stated_entropy_under_the_true_chances(source, nats_of):
    """Mean of -log p over independent rows, within four standard errors."""
    batch = source.batch_at(3, 10**6)
    said = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    rows = (nats_of(source, said) * batch.weights).sum(1) / batch.weights.sum(1)
    error = rows.std(ddof=1) / math.sqrt(len(rows))
    assert 0 < error < 0.02
    assert abs(rows.mean() - source.entropy) < 4 * error


def test_a_choice_is_as_likely_as_its_part_of_all_draws():
    walk = Markov(vocab=4, batch_size=1, sequence_length=1, language_seed=7).chain
    for state, cuts in enumerate(walk.thresholds.tolist()):
        at = np.zeros(len(walk.initial))
        at[state] = 1.0
        begin = type(walk)(
            thresholds=walk.thresholds,
            tokens=walk.tokens,
            next_states=walk.next_states,
            initial=at,
        )
        ends = [0, *cuts, 2**32]
        draws = np.array([[low, high - 1] for low, high in itertools.pairwise(ends)])
        first = np.zeros(1, np.uint64)
        for choice, pair in enumerate(draws.astype(np.uint64)):
            for draw in pair:
                assert begin.sample(first, draw[None, None]).tolist() == [[choice]]
        parts = [(high - low) / 2**32 for low, high in itertools.pairwise(ends)]
        np.testing.assert_allclose(walk.probabilities[state], parts, rtol=1e-12)
