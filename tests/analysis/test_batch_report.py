"""What a step learned from, against the loss that was logged and a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmx.analysis.batch_report import BatchReport, inspect_step
from lmx.analysis.history import RecordedRun
from lmx.analysis.html import render
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
RANDOM = ["Decoder.dropout=0.3"]
APART = [f"Experiment.{said}" for said in ("microbatches=1", "outer=@DiLoCo()")]
APART += ["DiLoCo.replicas=2", "DiLoCo.sync_every=3"]


@pytest.fixture
def learned(tiny, tmp_path, monkeypatch):
    """A run over the lines of a text, each a document, under overrides."""
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, line in enumerate(LINES):
        (texts / f"{number:02}.txt").write_text(line)

    def learned(*words):
        words = [*WORDS, f"Text.path={str(texts)!r}", *words]
        return train_run("tiny", tiny(*words), tmp_path / "run").path

    return learned


def looked_at(path, past, step, replicas=1):
    """What is found of a step, once it agrees with what was logged.

    Of replicas apart that is the mean of their own means, whatever their weights.
    """
    row = next(row for row in read_metrics(path) if row["step"] == step)
    found = inspect_step(past, step)
    parts = [
        [told for told in found.documents if told.origin.row * replicas // 8 == n]
        for n in range(replicas)
    ]
    nats = np.mean([BatchReport(0, step, part, {}, None).nats for part in parts])
    assert nats == pytest.approx(row["nats"], rel=1e-5)
    assert found.metrics["loss"] == row["loss"]
    assert found.start_step == 3 * (step > 3)
    assert sum(told.weights.sum() for told in found.documents) == row["tokens"]
    assert found.layer_norms["grad"] == row["grad_norm/layer"]
    return found


def test_each_token_has_its_nats_and_each_text_its_document(learned):
    path = learned()
    past = RecordedRun.open(path)
    found = looked_at(path, past, 6)
    assert len(found.documents) > 8
    for told in found.documents:
        assert told.origin.document is not None and told.origin.offset == 0
        text = f"<256>{LINES[told.origin.document]}"
        assert found.decode(told.tokens) == text and told.targets[-1] == 257
    model = nnx.merge(
        past.run.graph, past.advance(past.restore_at_or_before(3), 5).params
    )
    tokens, targets = (
        np.stack([getattr(told, name)[:18] for told in found.documents[:4]])
        for name in ("tokens", "targets")
    )
    logits = np.asarray(jax.jit(model)(jnp.asarray(tokens)), np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(chances, targets[..., None], axis=-1))
    here = [told.nats[:18] for told in found.documents[:4]]
    np.testing.assert_allclose(here, wanted[..., 0], rtol=1e-4)
    every = np.concatenate([told.nats[told.weights > 0] for told in found.documents])
    assert [w.nats for w in found.worst_tokens(5)] == sorted(
        every.tolist(), reverse=True
    )[:5]
    check_page(render("<b>", found), found)


def check_page(html: str, found) -> None:
    """Every token is there, and no text is taken for a part of the page."""
    assert html.count("<span") == sum(len(told.tokens) for told in found.told)
    assert "<goats>" not in html and "&lt;b&gt;" in html and "<b>" not in html
    worst = found.worst_tokens(1)[0]
    assert f'title="{worst.nats:.3f} nats"' in html


@pytest.mark.nightly
@pytest.mark.parametrize(("words", "replicas"), [(RANDOM, 1), (APART, 2)])
def test_the_tokens_of_a_batch_come_to_the_loss_that_was_logged(
    learned, words, replicas
):
    path = learned(*words)
    past = RecordedRun.open(path)
    for step in (2, 5):
        looked_at(path, past, step, replicas)
