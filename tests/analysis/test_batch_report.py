"""The report of a batch, against the logged loss and a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.analysis.batch_report import inspect_step, mean_nats
from lmx.analysis.html import render
from lmx.analysis.replay import RecordedRun
from lmx.run.run_dir import read_metrics
from lmx.train.trainer import train_run

pytestmark = pytest.mark.faults

LINES = [f"{number} sheep & {number % 7} <goats>\n" for number in range(60)]
WORDS = [
    "Experiment.data=@TextDataset()",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@ByteTokenizer()",
    "TextDataset.packing=@BestFitPacking()",
    "TextDataset.batch_size=8",
    "TextDataset.sequence_length=48",
    "Text.holdout=@HoldoutDocuments()",
    "HoldoutDocuments.fraction=0.0",
    "Decoder.vocab=258",
    "Decoder.depth=1",
    "Experiment.steps=6",
    "CheckpointPolicy.every=3",
    "CheckpointPolicy.keep=3",
    "Mesh.data=2",
    "Experiment.microbatches=2",
    "NextToken.chunk=12",
    "NextToken.z_loss=0.1",
]
DROPOUT = ["Decoder.dropout=0.3"]
DILOCO = ["Experiment.microbatches=1", "Experiment.local_sgd=@DiLoCo()"]
DILOCO += ["DiLoCo.replicas=2", "DiLoCo.sync_every=3"]


@pytest.fixture
def train(tiny, tmp_path, monkeypatch):
    """Trains on the lines of a text, one document each. Returns the run's folder."""
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, line in enumerate(LINES):
        (texts / f"{number:02}.txt").write_text(line)

    def train(*words):
        words = [*WORDS, f"Text.path={str(texts)!r}", *words]
        return train_run("tiny", tiny(*words), tmp_path / "run").path

    return train


def check_step(path, recorded, step, replicas=1):
    """The report of a step, which must agree with the logged metrics.

    The logged loss of DiLoCo is the mean over replicas, whatever their weights.
    """
    row = next(row for row in read_metrics(path) if row["step"] == step)
    report = inspect_step(recorded, step)
    parts = [
        [each for each in report.documents if each.origin.row * replicas // 8 == n]
        for n in range(replicas)
    ]
    assert np.mean([*map(mean_nats, parts)]) == pytest.approx(row["nats"], rel=1e-5)
    assert report.metrics["loss"] == row["loss"]
    assert report.start_step == 3 * (step > 3)
    assert sum(each.weights.sum() for each in report.documents) == row["tokens"]
    assert report.layer_norms["grad"] == row["grad_norm/layer"]
    return report


def test_each_token_has_its_loss_and_each_text_its_document(train):
    path = train()
    recorded = RecordedRun.open(path)
    report = check_step(path, recorded, 6)
    documents = report.documents
    assert len(documents) > 8
    for document in documents:
        assert document.origin.document is not None and document.origin.offset == 0
        text = f"<256>{LINES[document.origin.document]}"
        assert report.decode(document.tokens) == text and document.targets[-1] == 257
    state, _ = recorded.train(recorded.restore_before(4), 5)
    model = nnx.merge(recorded.run.graph, state.params)
    tokens, targets = (
        np.stack([getattr(document, name)[:18] for document in documents[:4]])
        for name in ("tokens", "targets")
    )
    logits = np.asarray(jax.jit(model)(jnp.asarray(tokens)), np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probs, targets[..., None], axis=-1))
    nats = [document.nats[:18] for document in documents[:4]]
    np.testing.assert_allclose(nats, expected[..., 0], rtol=1e-4)
    every = np.concatenate([each.nats[each.weights > 0] for each in documents])
    worst = [token.nats for token in report.worst_tokens(5)]
    assert worst == sorted(every.tolist(), reverse=True)[:5]
    check_html(render("<b>", report), report)


def check_html(html, report):
    """All tokens are on the page, and text is escaped."""
    assert html.count("<span") == sum(len(each.tokens) for each in report.documents)
    assert "<goats>" not in html and "&lt;b&gt;" in html and "<b>" not in html
    assert f'title="{report.worst_tokens(1)[0].nats:.3f} nats"' in html


@pytest.mark.nightly
@pytest.mark.parametrize(("words", "replicas"), [(DROPOUT, 1), (DILOCO, 2)])
def test_the_mean_over_tokens_is_the_logged_loss(train, words, replicas):
    path = train(*words)
    recorded = RecordedRun.open(path)
    for step in (2, 5):
        check_step(path, recorded, step, replicas)
