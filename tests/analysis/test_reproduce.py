"""A run is trained again from nothing but its metadata."""

import json

import pytest

from lmx.analysis.reproduce import RunMetadata, override_execution, reproduce
from lmx.config.registry import ConfigError
from lmx.core import hardware
from lmx.run.metadata import sample_losses
from lmx.run.run_dir import read_last_metrics, read_metrics
from lmx.train.trainer import train_run

pytestmark = pytest.mark.faults

WORDS = ["Decoder.depth=1", "Decoder.dropout=0.1", "Mesh.data=1"]
WORDS += [
    "Experiment.schedule=@Cosine()",
    "Cosine.peak_lr=0.01",
    "Cosine.warmup_steps=2",
]


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of ten steps, on a device with known peak FLOPs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.PEAK_FLOPS, "cpu", 1e9)
        path = tmp_path_factory.mktemp("runs") / "a"
        return train_run("tiny", tiny(*WORDS), path).path


@pytest.fixture
def write_metadata(finished, tmp_path):
    """Writes the run's metadata to an empty folder, with some fields changed."""

    def write_metadata(**fields):
        metadata = json.loads((finished / "metadata.json").read_text()) | fields
        (tmp_path / "metadata.json").write_text(json.dumps(metadata))
        return tmp_path / "metadata.json"

    return write_metadata


def read_losses(path):
    return {row["step"]: row["loss"] for row in read_metrics(path) if "loss" in row}


def test_the_metadata_of_a_finished_run_have_its_results(finished, tiny):
    fields = json.loads((finished / "metadata.json").read_text())
    assert RunMetadata.load(finished).config == tiny(*WORDS)
    assert fields["losses"] == [
        [row["step"], row["loss"]] for row in read_metrics(finished)
    ]
    assert fields["final"] == read_last_metrics(finished) and fields["seed"] == 0
    assert fields["imports"] == {} and fields["processes"] == 1 and fields["processor"]
    assert {"start", "compile", "data", "step", "save"} <= fields["seconds"].keys()
    training = sum(fields["seconds"][phase] for phase in ("step", "data", "log"))
    assert fields["mfu"] == pytest.approx(fields["flops"] / training / 1e9)


def test_metadata_alone_give_the_same_losses_to_the_bit(
    finished, write_metadata, tmp_path
):
    before, metadata = files(finished), RunMetadata.load(write_metadata())
    found = reproduce(metadata, metadata.config, tmp_path / "again")
    assert (found.differing_steps, found.rtol, found.steps) == ([], 0.0, 10)
    assert read_losses(tmp_path / "again") == read_losses(finished)
    assert found.losses == {s: (x, x) for s, x in read_losses(finished).items()}
    assert not {name for name in found.environment_diff if "version" in name}
    assert files(finished) == before


def test_the_first_steps_are_those_of_the_whole_run(finished, write_metadata, tmp_path):
    changed = [
        [step, loss * (1 + 1e-6 * (step == 3))]
        for step, loss in read_losses(finished).items()
    ]
    path = write_metadata(losses=changed, versions={"jax": "0.0.1"})
    metadata = RunMetadata.load(path)
    config = override_execution(metadata.config, ["Mesh.data=2"])
    found = reproduce(metadata, config, tmp_path / "again", steps=4)
    assert [*read_losses(tmp_path / "again")] == [1, 2, 3, 4] == [*found.losses]
    assert found.rtol == 0.01 and found.differing_steps == []
    assert found.environment_diff["mesh.data"] == (None, 2)
    assert found.environment_diff["versions.jax"][0] == "0.0.1"
    exact = type(found)(4, {}, 0.0, found.losses)
    assert 3 in exact.differing_steps  # by one part in a million


def test_a_run_that_cannot_be_reproduced_is_refused(finished, write_metadata, tmp_path):
    metadata, new = RunMetadata.load(write_metadata()), tmp_path / "new"
    with pytest.raises(ConfigError, match="exists: name a new folder"):
        reproduce(metadata, metadata.config, finished)
    with pytest.raises(ConfigError, match="schedule.peak_lr cannot be changed"):
        override_execution(metadata.config, ["Cosine.peak_lr=0.2"])
    other = RunMetadata.load(write_metadata(data={"source": "another"}))
    with pytest.raises(ConfigError, match="data are not those of the run"):
        reproduce(other, other.config, new)
    late = RunMetadata.load(write_metadata(losses=[[50, 1.0]]))
    with pytest.raises(ConfigError, match="the metadata starts with step 50"):
        reproduce(late, late.config, new)
    assert not new.exists()
    for text in ("[]", "{", '{"experiment": {}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match="is not the metadata of a run"):
            RunMetadata.load(tmp_path / "x.json")


def test_reading_metadata_imports_nothing(write_metadata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    experiment = {"@Experiment()": {"model": {"@Stranger": {}}}}
    path = write_metadata(experiment=experiment, imports={"stranger": "0" * 64})
    with pytest.raises(ConfigError, match="'Stranger'.*give --import stranger"):
        RunMetadata.load(path)


def test_losses_of_a_long_run_are_sampled_up_to_its_end():
    losses = sample_losses({"step": s, "loss": 1.0 / s} for s in range(1, 10**5))
    assert [step for step, _ in losses[:64]] == [*range(1, 65)] and len(losses) < 250
    ratios = [b / a for (a, _), (b, _) in zip(losses[64:], losses[65:], strict=False)]
    assert max(ratios) < 1.07 and losses[-1] == (99999, 1.0 / 99999)
