"""What mixtures must keep, against each part read alone and a loop over steps."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lmx.config.names import ConfigError
from lmx.data.batches import Rows, Source
from lmx.data.rows.mixture import Mixture, MixtureRows, Part
from lmx.data.rows.packing import BestFit, Concatenate
from lmx.data.rows.paused import Paused
from lmx.data.rows.schedule import Stepwise
from lmx.data.synthetic.echo import Echo
from lmx.data.tokenizers.codec import CharacterCodec

SIZES = {"books": 150, "code": 90, "web": 400}
WEIGHTS = {"books": 0.3, "code": 0.1, "web": 0.6}
FIRSTS = {"books": 0, "code": 10**6, "web": 2 * 10**6}  # tokens tell their source


@dataclass(frozen=True, kw_only=True)
class Given(Source):
    """A source that is open already."""

    rows: Rows

    def open(self) -> Rows:
        return self.rows


@pytest.fixture
def parts(make_store, make_rows):
    def parts(batch=8, length=16, packing=BestFit(), **weights):
        made = {}
        for number, (name, count) in enumerate(SIZES.items()):
            sizes = np.random.default_rng(number).integers(2, 20, count)
            rows = make_rows(make_store(sizes, FIRSTS[name]), packing, batch, length)
            weight = weights.get(name, WEIGHTS[name])
            made[name] = Part(source=Given(rows=rows), weight=weight)
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
            wanted.numbers, batch.targets, learned, strict=True
        ):
            read = self.read_of.setdefault(wanted.length, {})
            assert int(number) not in read
            read[int(number)] = row[here].tolist()
        return batch


def spied(mixture: MixtureRows) -> tuple[MixtureRows, list[Any]]:
    """The mixture with its parts watched, and those who watch."""
    spies = {name: Spy(rows) for name, rows in mixture.rows.items()}
    return dataclasses.replace(mixture, rows=spies), [*spies.values()]


def test_each_part_goes_through_its_epochs_whatever_the_others_do(parts):
    """Each epoch of each part has all it can learn once, in an order of its own."""
    mixture, spies = spied(Mixture(parts=parts()).open())
    for step in range(180):
        mixture.batch_at(5, step)
    for spy in spies:
        read, count = spy.read_of[16], spy.packed(16).fit.rows
        assert sorted(read) == list(range(len(read)))
        assert len(read) > 2 * count, "the test reads too little"
        tokens = spy.store.read(0, spy.store.size)
        later = np.delete(tokens, spy.store.starts[:-1]).tolist()
        epochs = [[read[n + e * count] for n in range(count)] for e in range(2)]
        for epoch in epochs:
            assert sorted(sum(epoch, [])) == later
        assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


@pytest.mark.parametrize("packing", [BestFit(), Concatenate()], ids=str)
def test_any_partition_of_the_rows_gives_the_same_batch(parts, packing):
    mixture = Mixture(parts=parts(packing=packing)).open()
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
    web = Stepwise(values=(0.6, 0.0, 0.3), at=(10, 25))
    batch = Stepwise(values=(8, 12), at=(17,))
    length = Stepwise(values=(16, 8, 16), at=(5, 30))
    mixture, spies = spied(Mixture(parts=parts(batch, length, web=web)).open())
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
    made["code"] = dataclasses.replace(made["code"], loss=0.25)
    plain, weighed = Mixture(parts=parts()).open(), Mixture(parts=made).open()
    for step in range(5):
        before, after = plain.batch_at(0, step), weighed.batch_at(0, step)
        is_code = np.array(sources(before)) == "code"
        factor = np.where(is_code, np.float32(0.25), np.float32(1))[:, None]
        assert (after.weights == before.weights * factor).all()
        assert (after.tokens == before.tokens).all()


def test_any_source_can_be_a_part_a_changed_one_too():
    echo = Echo(vocab=8, batch=4, length=10)
    mixture = Mixture(
        parts={
            "paused": Part(source=Paused(source=echo, share=0.3), weight=3.0),
            "plain": Part(source=echo),
        }
    ).open()
    assert isinstance(mixture, Rows)
    assert (mixture.vocab, mixture.steps, mixture.course.tokens(5)) == (9, None, 200)
    pauses = np.concatenate([
        (mixture.batch_at(0, step).tokens == 8).any(axis=1) for step in range(10)
    ])  # fmt: skip
    assert pauses.sum() == 30
    assert any("pauses" in name for name in mixture.fingerprint)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"web": 0.0}, "'web' of the mixture has weight 0 at every step"),
        ({"web": -0.5}, "Part.weight is -0.5: it must be 0 or more"),
        ({"web": float("inf")}, "Part.weight is inf"),
        ({"web": float("nan")}, "Part.weight is nan"),
        (
            {name: Stepwise(values=(1, 0), at=(7,)) for name in SIZES},
            "no part of the mixture has any weight at step 7",
        ),
        ({"web": 0.1234567}, "give them fewer digits"),
    ],
    ids=str,
)
def test_weights_that_say_nothing_are_refused(parts, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(parts=parts(**weights))


def test_parts_that_cannot_be_read_together_are_refused(parts, make_rows):
    made = parts()
    other = parts(batch=4)["web"]
    with pytest.raises(ConfigError, match="'books' and 'web' of the mixture differ in"):
        Mixture(parts={**made, "web": other}).open()
    letters = dataclasses.replace(
        made["web"].source.open(), tokenizer=CharacterCodec(characters="ab")
    )
    part = Part(source=Given(rows=letters))
    with pytest.raises(ConfigError, match="'books' and 'web' .*different tokenizers"):
        Mixture(parts={**made, "web": part}).open()
    inner = Part(source=Paused(source=Mixture(parts=made)))
    with pytest.raises(ConfigError, match="'all' of the mixture is a mixture"):
        Mixture(parts={"all": inner}).open()
    with pytest.raises(ConfigError, match="Mixture.parts is empty"):
        Mixture(parts={})


def test_a_schedule_of_lengths_over_a_source_without_one_is_refused(parts):
    echo = Part(source=Echo(vocab=8, batch=8, length=16))
    made = parts(length=Stepwise(values=(16, 8), at=(5,)))
    with pytest.raises(ConfigError, match="differ in batch or length"):
        Mixture(parts={**made, "echo": echo}).open()
