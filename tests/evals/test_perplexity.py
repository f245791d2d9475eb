"""Perplexity of held-out text, against a plain loop over its windows."""

import lzma
import math
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.config.registry import ConfigError
from lmx.data.synthetic.task import RepeatTask
from lmx.data.tokenizer.base import ByteTokenizer
from lmx.evals.perplexity import (
    Evaluate,
    measure_compression,
    score_batches,
    summarize,
)
from lmx.infer.generate import Generator, encode_prompt
from lmx.run.goodput import TimeAccounting
from lmx.run.run_dir import RunDir, read_last_metrics, read_metrics
from lmx.train.hook import HookRunner
from tests.hash_init import HASHED

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
LINES = "".join(f"{n} é bottles of beer on the wall\n" for n in range(60))
WORDS = [
    "Experiment.data=@TextDataset()",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@ByteTokenizer()",
    "TextDataset.sequence_length=16",
    "TextDataset.batch_size=8",
    "Text.holdout=@HoldoutTail()",
    "Decoder.vocab=258",
    HASHED,
    "Experiment.steps=4",
    "Mesh.data=2",
    "Experiment.hooks=[@Evaluate(), @CompressionBaseline(), @Sample()]",
    "Evaluate.data=@held/TextDataset()",
    "Evaluate.every=2",
    "Evaluate.batches=1",
    "CompressionBaseline.data=@held/TextDataset()",
    "held/TextDataset.split=validation",
    "held/TextDataset.order=@Sequential()",
    "Sample.prompt=wall",
    "Sample.tokens=12",
    "Sample.every=3",
    "Sampler.temperature=0.0",
]


@pytest.fixture(scope="module")
def run_and_hooks(tmp_path_factory):
    """An opened run on text, its initial state, and its hooks."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(LINES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder / "cache"))
        path = f"Text.path={folder / 'text.txt'}"
        experiment = lmx.load_experiment(TINY, [*WORDS, path]).build()
        run = experiment.open()
        hooks = [hook.build(run) for hook in experiment.hooks]
    return run, run.init(), hooks


@pytest.fixture
def logged(run_and_hooks, tmp_path):
    """Runs one of the hooks after some steps; returns all logged lines."""
    run, state, hooks = run_and_hooks

    def logged(which, *steps):
        directory = RunDir(tmp_path)
        directory.truncate_after(0)
        runner = HookRunner({"hook": hooks[which]}, directory, TimeAccounting())
        for step in steps:
            runner(step, state, {})
        directory.close()
        return list(read_metrics(tmp_path))

    return logged


HELD_OUT = LINES[int(len(LINES) * 0.9) :]


def by_hand(run, state):
    """Nats and targets of the held-out text, window by window, token by token."""
    graph = run.graph
    forward = jax.jit(lambda params, row: nnx.merge(graph, params)(row))
    params = jax.device_put(state.params, jax.devices()[0])
    stream = [256, *HELD_OUT.encode(), 257]
    nats, targets = 0.0, 0
    for begin in range(0, len(stream) - 1, 16):
        window = stream[begin : begin + 17]
        row = np.zeros((1, 16), np.int32)
        row[0, : len(window) - 1] = window[:-1]
        logits = np.asarray(forward(params, row)[0], np.float64)
        for at, target in enumerate(window[1:]):
            nats += np.log(np.exp(logits[at]).sum()) - logits[at, target]
            targets += 1
    return nats, targets


def test_the_last_evaluation_scores_every_window_once(run_and_hooks, logged):
    run, state, _ = run_and_hooks
    nats, targets = by_hand(run, state)
    (row,) = logged(0, 4)
    size = len(HELD_OUT.encode())
    assert targets % 128  # the last batch is not full
    assert row["validation/tokens"] == targets and row["validation/bytes"] == size
    assert row["validation/nats"] == pytest.approx(nats / targets, rel=1e-5)
    assert row["validation/perplexity"] == pytest.approx(math.exp(nats / targets), 1e-4)
    bits = nats / math.log(2) / size
    assert row["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_earlier_evaluations_use_some_batches(logged):
    found = logged(0, 1, 2, 3)
    assert [(row["step"], row["validation/tokens"]) for row in found] == [(2, 128)]


@pytest.mark.parametrize("batches", [3, 1])
def test_data_without_a_fixed_pass_are_measured_on_all_batches(run_and_hooks, batches):
    """Of random windows, schedules and mixtures: in every evaluation, and the last."""
    run, state, _ = run_and_hooks
    hook = Evaluate(data=endless(), every=2, batches=batches).build(run)
    for step in (2, run.steps):
        metrics = hook.call(step, state, {}) or {}
        assert metrics["validation/tokens"] == batches * 64


def test_data_without_any_target_are_refused_at_the_start(run_and_hooks, monkeypatch):
    run, _, _ = run_and_hooks
    data = endless()
    read = type(data.open()).read

    def without_weights(self, request):
        batch = read(self, request)
        return batch._replace(weights=0 * batch.weights)

    monkeypatch.setattr(type(data.open()), "read", without_weights)
    with pytest.raises(ConfigError, match="the data of 'validation' have no target"):
        Evaluate(data=data, batches=2).build(run)


def test_data_without_a_fixed_pass_need_a_number_of_batches(run_and_hooks):
    run, _, _ = run_and_hooks
    with pytest.raises(ConfigError, match=r"no fixed pass.* set Evaluate\.batches"):
        Evaluate(data=endless()).build(run)


def test_data_with_tokens_beyond_the_vocabulary_are_refused(run_and_hooks):
    """At the start by their vocabulary; by batch where a token is beyond theirs."""
    run, _, _ = run_and_hooks
    large = RepeatTask(vocab=300, batch_size=8, sequence_length=16)
    with pytest.raises(ConfigError, match="300 different tokens and the model 258"):
        Evaluate(data=large, batches=1).build(run)
    with pytest.raises(ConfigError, match="batch 2 has tokens from .* knows 0 to 257"):
        run.load_batch(large.open(), 0, 2)


def endless():
    """Rows of a synthetic task, with 8 targets each."""
    return RepeatTask(vocab=12, batch_size=8, sequence_length=16)


def test_the_baseline_agrees_with_zlib_and_lzma(logged):
    text = HELD_OUT.encode()
    (row,) = logged(1, 2, 4)
    assert row == {
        "step": 4,
        "validation/zlib_bits_per_byte": 8 * len(zlib.compress(text, 9)) / len(text),
        "validation/xz_bits_per_byte": 8
        * len(lzma.compress(text, preset=9))
        / len(text),
    }
    assert measure_compression(bytes(10_000))["zlib_bits_per_byte"] < 0.1


def test_samples_are_logged_when_due_and_agree_with_full_passes(
    run_and_hooks, logged, capsys
):
    run, state, _ = run_and_hooks
    first, final = logged(2, 1, 2, 3, 4)
    assert (first["step"], final["step"]) == (3, 4)
    assert first["sample"] == final["sample"]
    output = capsys.readouterr().out
    assert "--- step 3 ---\nwall" in output
    context = encode_prompt(run.data.info.tokenizer, "wall")
    params = jax.device_put(state.params, jax.devices()[0])
    forward = jax.jit(lambda row: nnx.merge(run.graph, params)(row))
    for _ in range(12):
        row = np.zeros((1, 32), np.int32)
        row[0, : len(context)] = context
        context.append(int(forward(row)[0, len(context) - 1].argmax()))
    assert first["sample"] == run.data.info.tokenizer.decode(context)


def test_samples_keep_the_space_after_the_prompt(run_and_hooks, monkeypatch):
    """Of tokenizers that put a space before a text."""
    _, state, hooks = run_and_hooks
    monkeypatch.setattr(ByteTokenizer, "strip_leading_space", True)
    monkeypatch.setattr(Generator, "stream", lambda *_: iter(b" x"))
    assert hooks[2].call(4, state, {}) == {"sample": "wall x"}


def test_the_mean_is_over_all_tokens_and_not_over_batches(run_and_hooks):
    run, _, _ = run_and_hooks
    sums = iter(jnp.array([[[10.0], [4.0], [8.0]], [[1.0], [1.0], [0.0]]]))

    def score(batch):
        nats, tokens, size = next(sums)
        return nats, tokens, size

    rows = score_batches(score, partial(run.data.batch_at, 0), 2, "test")
    found = summarize(rows.sum(axis=1))
    assert found["nats"] == 11 / 5 and found["tokens"] == 5
    assert found["bits_per_byte"] == pytest.approx(11 / math.log(2) / 8)


def test_invalid_evaluations_are_refused_before_the_run(run_and_hooks):
    run, _, _ = run_and_hooks
    words = ["Experiment.hooks=[@Evaluate()]", "Evaluate.data=@other/RepeatTask()"]
    words += ["Evaluate.batches=1", "other/RepeatTask.batch_size=3"]
    (hook,) = lmx.load_experiment(TINY, words).build().hooks
    with pytest.raises(ValueError, match="'batch' of size 3 cannot be split evenly"):
        hook.build(run)
    with pytest.raises(ConfigError, match="Evaluate.every is 0: it must be above 0"):
        lmx.load_experiment(TINY, [*words, "Evaluate.every=0"])


def test_a_summary_has_the_newest_evaluation(logged, tmp_path):
    logged(0, 2, 4)
    assert read_last_metrics(tmp_path)["step"] == 4


def test_samples_need_a_tokenizer(run_and_hooks):
    run = lmx.load_experiment(TINY).build().open()
    (hook,) = lmx.load_experiment(TINY, ["Experiment.hooks=[@Sample()]"]).build().hooks
    with pytest.raises(ConfigError, match="needs data that are text: remove the hook"):
        hook.build(run)
