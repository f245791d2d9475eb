"""What mixtures must keep, against each part read alone and a loop over steps."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.dataset import Dataset
from lmx.data.sampling.mixture import Mixture, MixtureComponent, MixtureDataset
from lmx.data.sampling.packing import BestFitPacking, ConcatAndSplit
from lmx.data.sampling.pause_tokens import PauseTokens
from lmx.data.sampling.schedule import PiecewiseConstant
from lmx.data.synthetic.repeat import RepeatTask
from lmx.data.tokenizer.base import CharTokenizer

SIZES = {"books": 150, "code": 90, "web": 400}
WEIGHTS = {"books": 0.3, "code": 0.1, "web": 0.6}
FIRSTS = {"books": 0, "code": 10**6, "web": 2 * 10**6}  # tokens tell their source


@pytest.fixture
def parts(open_config, make_store, make_rows):
    def parts(batch=8, length=16, packing=BestFitPacking(), **weights):
        made = {}
        for number, (name, count) in enumerate(SIZES.items()):
            sizes = np.random.default_rng(number).integers(2, 20, count)
            rows = make_rows(make_store(sizes, FIRSTS[name]), packing, batch, length)
            weight = weights.get(name, WEIGHTS[name])
            made[name] = MixtureComponent(
                source=open_config(dataset=rows), weight=weight
            )
        return made

    return parts


def sources(batch) -> list[str]:
    """Which source each row is of."""
    names = np.array(list(FIRSTS))
    return names[batch.tokens[:, 0] // 10**6].tolist()


class Spy:
    """Rows that write down which ones are read, by length and number."""

    def __init__(self, rows):
        self.rows, self.read_of = rows, {}

    def __getattr__(self, name):
        return getattr(self.rows, name)

    def read(self, wanted):
        batch = self.rows.read(wanted)
        learned = batch.weights > 0
        for number, row, here in zip(
            wanted.indices, batch.targets, learned, strict=True
        ):
            read = self.read_of.setdefault(wanted.sequence_length, {})
            assert int(number) not in read
            read[int(number)] = row[here].tolist()
        return batch


def spied(mixture: MixtureDataset) -> tuple[MixtureDataset, list[Any]]:
    """The mixture with its parts watched, and those who watch."""
    spies = {name: Spy(rows) for name, rows in mixture.datasets.items()}
    return dataclasses.replace(mixture, datasets=spies), [*spies.values()]


def test_each_part_goes_through_its_epochs_whatever_the_others_do(parts):
    """Each epoch of each part has all it can learn once, in an order of its own."""
    mixture, spies = spied(Mixture(components=parts()).open())
    for step in range(180):
        mixture.batch_at(5, step)
    for spy in spies:
        read, count = spy.read_of[16], spy.pack(16).rows
        assert sorted(read) == list(range(len(read)))
        assert len(read) > 2 * count, "the test reads too little"
        tokens = spy.store.read(0, spy.store.size)
        later = np.delete(tokens, spy.store.starts[:-1]).tolist()
        epochs = [[read[n + e * count] for n in range(count)] for e in range(2)]
        for epoch in epochs:
            assert sorted(sum(epoch, [])) == later
        assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


@pytest.mark.parametrize("packing", [BestFitPacking(), ConcatAndSplit()], ids=str)
def test_any_partition_of_the_rows_gives_the_same_batch(parts, packing):
    mixture = Mixture(components=parts(packing=packing)).open()
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


def test_weights_change_with_the_step_and_no_row_is_read_twice_or_left_out(parts):
    """By counting, over stages of shapes and of weights that do not meet."""
    web = PiecewiseConstant(values=(0.6, 0.0, 0.3), boundaries=(10, 25))
    batch = PiecewiseConstant(values=(8, 12), boundaries=(17,))
    length = PiecewiseConstant(values=(16, 8, 16), boundaries=(5, 30))
    mixture, spies = spied(Mixture(components=parts(batch, length, web=web)).open())
    stages: dict[tuple, list[str]] = {}
    for step in range(60):
        got = sources(mixture.batch_at(1, step))
        assert len(got) == batch(step)
        stages.setdefault((web(step), batch(step), length(step)), []).extend(got)
    for (weight, _, _), got in stages.items():
        total = 0.4 + weight
        for name, share in {"web": weight, "books": 0.3, "code": 0.1}.items():
            assert abs(got.count(name) - len(got) * share / total) < 2
    for spy in spies:
        assert set(spy.read_of) == {8, 16}
        for read in spy.read_of.values():
            assert sorted(read) == list(range(len(read)))


def test_a_loss_weight_scales_a_part_and_no_other(parts):
    made = parts()
    made["code"] = dataclasses.replace(made["code"], loss_weight=0.25)
    plain, weighed = Mixture(components=parts()).open(), Mixture(components=made).open()
    for step in range(5):
        before, after = plain.batch_at(0, step), weighed.batch_at(0, step)
        is_code = np.array(sources(before)) == "code"
        factor = np.where(is_code, np.float32(0.25), np.float32(1))[:, None]
        assert (after.weights == before.weights * factor).all()
        assert (after.tokens == before.tokens).all()


def test_any_source_can_be_a_part_a_changed_one_too():
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
        ({"web": -0.5}, "MixtureComponent.weight is -0.5: it must be 0 or more"),
        ({"web": float("inf")}, "MixtureComponent.weight is inf"),
        ({"web": float("nan")}, "MixtureComponent.weight is nan"),
        (
            {name: PiecewiseConstant(values=(1, 0), boundaries=(7,)) for name in SIZES},
            "no part of the mixture has any weight at step 7",
        ),
        ({"web": 0.1234567}, "give them fewer digits"),
    ],
    ids=str,
)
def test_weights_that_say_nothing_are_refused(parts, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(components=parts(**weights))


def test_parts_that_cannot_be_read_together_are_refused(open_config, parts, make_rows):
    made = parts()
    other = parts(batch_size=4)["web"]
    with pytest.raises(ConfigError, match="'books' and 'web' of the mixture differ in"):
        Mixture(components={**made, "web": other}).open()
    letters = dataclasses.replace(
        made["web"].source.open(), tokenizer=CharTokenizer(characters="ab")
    )
    part = MixtureComponent(source=open_config(dataset=letters))
    with pytest.raises(ConfigError, match="'books' and 'web' .*different tokenizers"):
        Mixture(components={**made, "web": part}).open()
    inner = MixtureComponent(source=PauseTokens(source=Mixture(components=made)))
    with pytest.raises(ConfigError, match="'all' of the mixture is a mixture"):
        Mixture(components={"all": inner}).open()
    with pytest.raises(ConfigError, match="Mixture.components is empty"):
        Mixture(components={})


def test_a_schedule_of_lengths_over_a_source_without_one_is_refused(parts):
    echo = MixtureComponent(
        source=RepeatTask(vocab=8, batch_size=8, sequence_length=16)
    )
    made = parts(length=PiecewiseConstant(values=(16, 8), boundaries=(5,)))
    with pytest.raises(ConfigError, match="differ in batch or length"):
        Mixture(components={**made, "echo": echo}).open()
