"""What two processes began and lost, four finish: the same documents, same losses."""

import pytest

import lmx
from lmx.train.again.prove import compare
from lmx.train.again.prove.life import Place, Trial, live
from lmx.train.again.prove.moment import STEP, Moment
from tests.quick import FLAGS
from tests.train.conftest import FLOAT64, PAGE

STEPS = 20
WORDS = [
    "Experiment.data=@Tokens()",
    f"Experiment.steps={STEPS}",
    "Decoder.vocab=32",
    "Tokens.corpus=@Text()",
    "Tokens.tokenizer=@Characters()",
    "Tokens.packing=@BestFit()",
    "Tokens.batch=8",
    "Tokens.length=16",
    "ByDocument.fraction=0.1",
]
TWO = Place(2, 1, (("data", 1), ("fsdp", 2)))
FOUR = Place(4, 1, (("data", 2), ("fsdp", 2)))
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
    trial = Trial(
        module="lmx.cli.main",
        page=f"{PAGE}",
        words=words,
        imports=[],
        folder=tmp_path,
    )
    alone = live(trial, "alone", Place(mesh=(("data", 1),)), None, int)
    moment = Moment(STEP, 11, 0.5)
    pair = live(trial, "moved", TWO, moment, int, process=1)
    four = live(trial, "moved", FOUR, None, int)
    assert pair.statuses == [75, -9] and four.statuses == [0] * 4
    assert pair.began == 0 and four.began in (4, 8)
    fed = compare.alike([pair.batches(), four.batches()], alone.batches())
    assert fed["holds"] and fed["compared"] > STEPS
    near = compare.near(
        [compare.losses(pair), compare.losses(four)],
        compare.losses(alone),
        CLOSE[dtype],
    )
    assert near["holds"], near
