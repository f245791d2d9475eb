"""Two processes are killed and four resume their run: same batches, same losses."""

import pytest

import lmx
from lmx.faulttest.kill_point import STEP, KillPoint
from lmx.faulttest.process_group import Scenario, Topology, run_attempt
from lmx.faulttest.report import compare
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
RTOL = {"float64": 1e-9, "float32": 1e-4}  # relative


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of different documents."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(80):
        text = f"{number} beads faded " * (number % 5 + 1)
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(
    "dtype", ["float64", pytest.param("float32", marks=pytest.mark.nightly)]
)
def test_a_run_of_two_killed_processes_resumes_on_four(
    texts, tmp_path, monkeypatch, dtype
):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setenv("LMX_CACHE", f"{tmp_path / 'cache'}")
    words = [*WORDS, f"Text.path={texts}", *(FLOAT64 if dtype == "float64" else [])]
    scenario = Scenario(
        config=lmx.load_experiment(PAGE, words),
        file=f"{PAGE}",
        overrides=words,
        folder=tmp_path,
    )
    one = run_attempt(scenario, "one", Topology(mesh=(("data", 1),)))
    two = run_attempt(scenario, "resharded", TWO, KillPoint(STEP, 11, 0.5))
    four = run_attempt(scenario, "resharded", FOUR)
    assert two.statuses == [75, -9] and four.statuses == [0] * 4
    assert two.start_step == 0 and four.start_step in (4, 8)
    batches = compare([two.batches, four.batches], one.batches)
    assert batches["passed"] and batches["compared"] > STEPS
    losses = compare([two.losses, four.losses], one.losses, RTOL[dtype])
    assert losses["passed"], losses
