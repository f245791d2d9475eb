"""What two processes began and lost, four finish: the same documents, same losses."""

import pytest

import lmx
from lmx.faulttest import compare
from lmx.faulttest.kill_point import STEP, KillPoint
from lmx.faulttest.process_group import Scenario, Topology, run_attempt
from tests.train.conftest import FLOAT64, PAGE
from tests.xla_flags import FLAGS

STEPS = 20
WORDS = [
    "Experiment.data=@TextDataset()",
    f"Experiment.steps={STEPS}",
    "Decoder.vocab=32",
    "TextDataset.corpus=@Text()",
    "TextDataset.tokenizer=@CharTokenizer()",
    "TextDataset.packing=@BestFitPacking()",
    "TextDataset.batch_size=8",
    "TextDataset.sequence_length=16",
    "HoldoutDocuments.fraction=0.1",
]
TWO = Topology(2, 1, (("data", 1), ("fsdp", 2)))
FOUR = Topology(4, 1, (("data", 2), ("fsdp", 2)))
CLOSE = {"float64": 1e-9, "float32": 1e-4}  # relative


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of documents that all differ."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(80):
        text = f"{number} beads faded " * (number % 5 + 1)
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("dtype", CLOSE)
def test_two_processes_that_are_killed_go_on_as_four(
    texts, tmp_path, monkeypatch, dtype
):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setenv("LMX_CACHE", f"{tmp_path / 'cache'}")
    words = [*WORDS, f"Text.path={texts}", *(FLOAT64 if dtype == "float64" else [])]
    assert lmx.load_experiment(PAGE, words)
    trial = Scenario(
        module="lmx.cli.main",
        config=f"{PAGE}",
        overrides=words,
        imports=[],
        folder=tmp_path,
    )
    alone = run_attempt(trial, "alone", Topology(mesh=(("data", 1),)), None, int)
    moment = KillPoint(STEP, 11, 0.5)
    pair = run_attempt(trial, "moved", TWO, moment, int, process=1)
    four = run_attempt(trial, "moved", FOUR, None, int)
    assert pair.statuses == [75, -9] and four.statuses == [0] * 4
    assert pair.start_step == 0 and four.start_step in (4, 8)
    fed = compare.compare_equal(
        [pair.batch_fingerprints(), four.batch_fingerprints()],
        alone.batch_fingerprints(),
    )
    assert fed["holds"] and fed["compared"] > STEPS
    near = compare.compare_close(
        [compare.read_losses(pair), compare.read_losses(four)],
        compare.read_losses(alone),
        CLOSE[dtype],
    )
    assert near["holds"], near
