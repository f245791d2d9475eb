"""Models reach the entropy of their language, and their loss is not below it."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.data.dataset import prefetch
from lmx.data.synthetic.markov import Markov
from lmx.evals.entropy_gap import estimate_mean
from lmx.evals.perplexity import score_rows
from lmx.infer.score import compute_logprobs
from lmx.run.goodput import TimeAccounting
from lmx.run.run_dir import RunDir, read_last_metrics
from lmx.train.hook import HookRunner
from lmx.train.loop import train
from tests.hash_init import HASHED

PAGES = Path(__file__).parents[2] / "experiments"
PAGE, GRAMMAR = PAGES / "markov.gin", PAGES / "grammar.gin"
ONE = ["Mesh.data=1"]


@pytest.fixture
def trained(tmp_path):
    """Trains a config with overrides; returns the last logged metrics."""

    def trained(page, *words):
        experiment = lmx.load_experiment(page, [*ONE, *words]).build()
        run = experiment.open()
        hooks = {type(hook).__name__: hook.build(run) for hook in experiment.hooks}
        directory = RunDir(tmp_path)
        directory.truncate_after(0)
        runner = HookRunner(hooks, directory, TimeAccounting())
        batches = prefetch(
            lambda step: run.put_batch(run.data.batch_at(run.seed, step)), 0, run.steps
        )
        train(run.step, run.init(), batches, steps=run.steps, hooks=[runner])
        directory.close()
        return read_last_metrics(tmp_path)

    return trained


def check(found, share):
    """The excess is below that share of the entropy, and not significantly negative."""
    excess, error = found["fresh/excess"], found["fresh/standard_error"]
    assert excess == pytest.approx(found["fresh/nats"] - found["fresh/entropy"])
    assert 0 < error < 0.004 * found["fresh/entropy"]
    assert -3 * error < excess < share * found["fresh/entropy"]


def test_two_layers_reach_the_entropy_of_a_simple_markov_chain(trained):
    check(trained(PAGE, "Markov.order=1", "Experiment.steps=60"), 0.03)


@pytest.mark.nightly
def test_two_layers_reach_the_entropy_of_a_markov_chain(trained):
    check(trained(PAGE), 0.01)


@pytest.mark.nightly
def test_two_layers_reach_the_entropy_of_a_grammar(trained):
    check(trained(GRAMMAR), 0.03)


@pytest.mark.nightly
@pytest.mark.parametrize("language", range(3))
def test_other_markov_chains_are_learned(trained, language):
    words = ["Markov.vocab=8", "Decoder.vocab=8", f"Markov.language_seed={language}"]
    check(trained(PAGE, *words, "Markov.batch_size=32", "Experiment.steps=600"), 0.01)


@pytest.mark.nightly
@pytest.mark.parametrize(("language", "share"), [(0, 0.03), (1, 0.1), (2, 0.03)])
def test_deeper_grammars_are_learned(trained, language, share):
    """The second takes longer: the gap is 8% after 1,000 steps, 5% after 3,000."""
    words = [
        "Grammar.depth=4",
        f"Grammar.language_seed={language}",
        "Grammar.batch_size=32",
    ]
    check(trained(GRAMMAR, *words, "Experiment.steps=1000"), share)


def test_scores_of_rows_are_sums_of_token_logprobs():
    experiment = lmx.load_experiment(PAGE, [HASHED, *ONE]).build()
    run = experiment.open()
    assert isinstance(source := experiment.data, Markov)
    model, batch = run.init().params, run.data.batch_at(0, 0)
    nats, weights, _ = jax.jit(score_rows, static_argnums=0)(run.graph, model, batch)
    tokens_BS = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    logprobs = jax.jit(lambda p, t: compute_logprobs(nnx.merge(run.graph, p), t))(
        model, tokens_BS
    )
    expected = -(np.asarray(logprobs)[:, 1:] * batch.weights).sum(axis=1)
    np.testing.assert_allclose(nats, expected, rtol=2e-5)
    np.testing.assert_array_equal(weights, batch.weights.sum(axis=1))
    mean, _ = estimate_mean(np.asarray(nats), np.asarray(weights))
    assert mean > np.log(6) - 0.05 > source.entropy + 0.25  # it knows nothing yet


def test_the_standard_error_agrees_with_repeated_samples():
    """The deviation of the mean over samples is the error estimated from one."""
    noise = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        weights = noise.integers(1, 9, 60).astype(float)
        rows = noise.normal(1.5, 0.4, 60)  # tokens of a row are alike
        mean, error = estimate_mean(weights * rows, weights)
        means.append(mean)
        errors.append(error)
    assert np.mean(means) == pytest.approx(1.5, abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)
