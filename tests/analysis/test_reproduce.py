"""A run made again out of nothing but its card."""

import json

import pytest

from lmx.analysis.reproduce import RunMetadata, apply_overrides, reproduce
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
    """A run of ten steps, on a device whose speed is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.PEAK_FLOPS, "cpu", 1e9)
        path = tmp_path_factory.mktemp("runs") / "a"
        return train_run("tiny", tiny(*WORDS), path).path


@pytest.fixture
def told(finished, tmp_path):
    """A card that lies alone, with some facts changed."""

    def told(**facts):
        card = json.loads((finished / "metadata.json").read_text()) | facts
        (tmp_path / "metadata.json").write_text(json.dumps(card))
        return tmp_path / "metadata.json"

    return told


def losses_of(path):
    return {row["step"]: row["loss"] for row in read_metrics(path) if "loss" in row}


def test_a_card_has_all_that_a_run_came_to(finished, tiny):
    card = json.loads((finished / "metadata.json").read_text())
    assert RunMetadata.load(finished).config == tiny(*WORDS)
    assert card["losses"] == [
        [row["step"], row["loss"]] for row in read_metrics(finished)
    ]
    assert card["final"] == read_last_metrics(finished) and card["seed"] == 0
    assert card["imports"] == {} and card["processes"] == 1 and card["processor"]
    assert {"start", "compile", "data", "step", "Save"} <= card["seconds"].keys()
    training = sum(card["seconds"][state] for state in ("step", "data", "log"))
    assert card["mfu"] == pytest.approx(card["flops"] / training / 1e9)


def test_a_card_by_itself_gives_the_same_losses_to_the_bit(finished, told, tmp_path):
    before, card = files(finished), RunMetadata.load(told())
    found = reproduce(card, card.config, tmp_path / "again")
    assert (found.differing_steps, found.rtol, found.steps) == ([], 0.0, 10)
    assert losses_of(tmp_path / "again") == losses_of(finished)
    assert found.losses == {s: (x, x) for s, x in losses_of(finished).items()}
    assert not {name for name in found.environment_diff if "version" in name}
    assert files(finished) == before


def test_its_first_steps_are_those_of_the_whole_run(finished, told, tmp_path):
    false = [[step, loss * (1 + 1e-6 * (step == 3))] for step, loss in
             losses_of(finished).items()]  # fmt: skip
    card = RunMetadata.load(told(losses=false, versions={"jax": "0.0.1"}))
    config = apply_overrides(card, ["Mesh.data=2"])
    found = reproduce(card, config, tmp_path / "again", steps=4)
    assert [*losses_of(tmp_path / "again")] == [1, 2, 3, 4] == [*found.losses]
    assert found.rtol == 0.01 and found.differing_steps == []
    assert found.environment_diff["mesh.data"] == (None, 2)
    assert found.environment_diff["versions.jax"][0] == "0.0.1"
    exact = type(found)(4, {}, 0.0, found.losses)
    assert 3 in exact.differing_steps  # by a part in a million, and told from the same


def test_what_cannot_be_made_again_is_refused(finished, told, tmp_path):
    card, new = RunMetadata.load(told()), tmp_path / "new"
    with pytest.raises(ConfigError, match="is there: name a new folder"):
        reproduce(card, card.config, finished)
    with pytest.raises(ConfigError, match="schedule.peak is another run"):
        apply_overrides(card, ["Cosine.peak_lr=0.2"])
    other = RunMetadata.load(told(data={"source": "another"}))
    with pytest.raises(ConfigError, match="data are not those of the card"):
        reproduce(other, other.config, new)
    late = RunMetadata.load(told(losses=[[50, 1.0]]))
    with pytest.raises(ConfigError, match="the card begins with step 50"):
        reproduce(late, late.config, new)
    assert not new.exists()
    for text in ("[]", "{", '{"experiment": {}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match="is no card that a run can be made of"):
            RunMetadata.load(tmp_path / "x.json")


def test_a_card_imports_nothing(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    experiment = {"@Experiment()": {"model": {"@Stranger": {}}}}
    path = told(experiment=experiment, imports={"stranger": "0" * 64})
    with pytest.raises(ConfigError, match="'Stranger'.*give --import stranger"):
        RunMetadata.load(path)


def test_losses_of_a_long_run_are_few_and_reach_its_end():
    found = sample_losses(
        {"step": step, "loss": 1.0 / step} for step in range(1, 10**5)
    )
    assert [step for step, _ in found[:64]] == [*range(1, 65)] and len(found) < 250
    gaps = [b / a for (a, _), (b, _) in zip(found[64:], found[65:], strict=False)]
    assert max(gaps) < 1.07 and found[-1] == (99999, 1.0 / 99999)
