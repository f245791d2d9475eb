"""Tests of mixtures, against components read alone and a loop over steps."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.data.dataset import Dataset, DatasetWrapper
from lmx.data.sampling.mixture import Mixture, MixtureComponent, MixtureDataset
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.transform import PauseTokens
from lmx.data.schedule import PiecewiseConstant, RowRequest
from lmx.data.synthetic.task import RepeatTask
from lmx.data.tokenizer.base import CharTokenizer

SIZES = {"books": 150, "code": 90, "web": 400}
WEIGHTS = {"books": 0.3, "code": 0.1, "web": 0.6}
# The first token of each source.
FIRSTS = {"books": 0, "code": 10**6, "web": 2 * 10**6}


@pytest.fixture
def make_parts(open_config, make_store, make_dataset):
    def make_parts(batch=8, length=16, packing=BestFitPacking(), **weights):
        parts = {}
        for number, (name, count) in enumerate(SIZES.items()):
            sizes = np.random.default_rng(number).integers(2, 20, count)
            rows = make_dataset(make_store(sizes, FIRSTS[name]), packing, batch, length)
            weight = weights.get(name, WEIGHTS[name])
            parts[name] = MixtureComponent(
                source=open_config(dataset=rows), weight=weight
            )
        return parts

    return make_parts


def list_sources(batch) -> list[str]:
    """The source of each row."""
    names = np.array(list(FIRSTS))
    return names[batch.tokens[:, 0] // 10**6].tolist()


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordingDataset(DatasetWrapper):
    """Records the targets of each row that is read, by length and index."""

    rows_read: dict[int, dict[int, list[int]]] = field(default_factory=dict)

    def read(self, request: RowRequest) -> Batch:
        batch = self.source.read(request)
        weighted = batch.weights > 0
        rows = self.rows_read.setdefault(request.sequence_length, {})
        for index, targets, mask in zip(
            request.indices, batch.targets, weighted, strict=True
        ):
            assert int(index) not in rows
            rows[int(index)] = targets[mask].tolist()
        return batch


def record(mixture: MixtureDataset) -> tuple[MixtureDataset, list[Any]]:
    """The mixture with recording components, and these."""
    recorders = {
        name: RecordingDataset(source=dataset)
        for name, dataset in mixture.datasets.items()
    }
    return dataclasses.replace(mixture, datasets=recorders), [*recorders.values()]


def test_each_component_has_its_own_epochs(make_parts):
    """Each epoch of a component has each target once, in a new order."""
    mixture, recorders = record(Mixture(components=make_parts()).open())
    for step in range(180):
        mixture.batch_at(5, step)
    for recorder in recorders:
        read, count = recorder.rows_read[16], recorder.source.pack(16).rows
        assert sorted(read) == list(range(len(read)))
        assert len(read) > 2 * count, "not enough steps"
        tokens = recorder.source.store.read(0, recorder.source.store.size)
        later = np.delete(tokens, recorder.source.store.starts[:-1]).tolist()
        epochs = [[read[n + e * count] for n in range(count)] for e in range(2)]
        for epoch in epochs:
            assert sorted(sum(epoch, [])) == later
        assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


@pytest.mark.parametrize("packing", [BestFitPacking(), ConcatAndSplit()], ids=str)
def test_any_partition_of_the_rows_gives_the_same_batch(make_parts, packing):
    mixture = Mixture(components=make_parts(packing=packing)).open()
    for step in (0, 1, 777, 10**9):
        whole = mixture.batch_at(3, step)
        for count in (1, 2, 4, 8):
            share = 8 // count
            shares = [
                mixture.batch_at(3, step, slice(i * share, (i + 1) * share))
                for i in range(count)
            ]
            for got, *pieces in zip(whole, *shares, strict=True):
                assert got.tobytes() == np.concatenate(pieces).tobytes()


def test_weights_and_shapes_change_and_every_row_is_read_once(make_parts):
    """Weights and shapes change at different steps."""
    web = PiecewiseConstant(values=(0.6, 0.0, 0.3), boundaries=(10, 25))
    batch = PiecewiseConstant(values=(8, 12), boundaries=(17,))
    length = PiecewiseConstant(values=(16, 8, 16), boundaries=(5, 30))
    mixture, recorders = record(
        Mixture(components=make_parts(batch, length, web=web)).open()
    )
    stages: dict[tuple, list[str]] = {}
    for step in range(60):
        got = list_sources(mixture.batch_at(1, step))
        assert len(got) == batch(step)
        stages.setdefault((web(step), batch(step), length(step)), []).extend(got)
    for (weight, _, _), got in stages.items():
        total = 0.4 + weight
        for name, share in {"web": weight, "books": 0.3, "code": 0.1}.items():
            assert abs(got.count(name) - len(got) * share / total) < 2
    for recorder in recorders:
        assert set(recorder.rows_read) == {8, 16}
        for read in recorder.rows_read.values():
            assert sorted(read) == list(range(len(read)))


def test_a_loss_weight_scales_only_its_component(make_parts):
    parts = make_parts()
    parts["code"] = dataclasses.replace(parts["code"], loss_weight=0.25)
    plain, weighed = (
        Mixture(components=make_parts()).open(),
        Mixture(components=parts).open(),
    )
    for step in range(5):
        before, after = plain.batch_at(0, step), weighed.batch_at(0, step)
        is_code = np.array(list_sources(before)) == "code"
        factor = np.where(is_code, np.float32(0.25), np.float32(1))[:, None]
        assert (after.weights == before.weights * factor).all()
        assert (after.tokens == before.tokens).all()


def test_a_component_can_be_any_dataset():
    echo = RepeatTask(vocab=8, batch_size=4, sequence_length=10)
    mixture = Mixture(
        components={
            "paused": MixtureComponent(
                source=PauseTokens(source=echo, rate=0.3), weight=3.0
            ),
            "plain": MixtureComponent(source=echo),
        }
    ).open()
    assert isinstance(mixture, Dataset)
    assert (
        mixture.info.vocab,
        mixture.info.steps,
        mixture.info.schedule.count_tokens(5),
    ) == (
        9,
        None,
        200,
    )
    pauses = np.concatenate([
        (mixture.batch_at(0, step).tokens == 8).any(axis=1) for step in range(10)
    ])  # fmt: skip
    assert pauses.sum() == 30
    assert any("PauseTokens" in name for name in mixture.info.fingerprint)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"web": 0.0}, "'web' of the mixture has weight 0 at every step"),
        (
            {name: PiecewiseConstant(values=(1, 0), boundaries=(7,)) for name in SIZES},
            "no component of the mixture has a positive weight at step 7",
        ),
        ({"web": 0.1234567}, "use fewer digits"),
    ],
    ids=str,
)
def test_invalid_weights_are_refused(make_parts, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(components=make_parts(**weights))


def test_components_that_do_not_agree_are_refused(open_config, make_parts):
    parts = make_parts()
    other = make_parts(batch=4)["web"]
    with pytest.raises(ConfigError, match="'books' and 'web' of the mixture differ in"):
        Mixture(components={**parts, "web": other}).open()
    letters = dataclasses.replace(
        parts["web"].source.open(), tokenizer=CharTokenizer(characters="ab")
    )
    part = MixtureComponent(source=open_config(dataset=letters))
    with pytest.raises(ConfigError, match="'books' and 'web' .*different tokenizers"):
        Mixture(components={**parts, "web": part}).open()
    inner = MixtureComponent(source=PauseTokens(source=Mixture(components=parts)))
    with pytest.raises(ConfigError, match="'all' of the mixture is a mixture"):
        Mixture(components={"all": inner}).open()
    with pytest.raises(ConfigError, match="Mixture.components is empty"):
        Mixture(components={})


def test_a_schedule_of_lengths_needs_one_in_every_component(make_parts):
    echo = MixtureComponent(
        source=RepeatTask(vocab=8, batch_size=8, sequence_length=16)
    )
    parts = make_parts(length=PiecewiseConstant(values=(16, 8), boundaries=(5,)))
    with pytest.raises(ConfigError, match="differ in batch_size"):
        Mixture(components={**parts, "echo": echo}).open()
