"""Tests of datasets of text, against plain loops."""

import dataclasses

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.core.batch import Batch
from lmx.data.corpus.corpus import HoldoutDocuments, HoldoutTail
from lmx.data.corpus.text import Text
from lmx.data.dataset import Dataset
from lmx.data.sampling.order import RandomWindows, Sequential, Shuffled
from lmx.data.text_dataset import TextDataset, TokenDataset
from lmx.data.tokenizer.base import ByteTokenizer, CharTokenizer

ORDERS = pytest.mark.parametrize(
    "order", [Shuffled(), RandomWindows(), Sequential()], ids=str
)


@pytest.fixture
def tokens(tmp_path, write) -> TextDataset:
    for number in range(40):
        write(f"texts/{number}.txt", f"{number} é" * (number % 9 + 1))
    corpus = Text(path=str(tmp_path / "texts"), holdout=HoldoutDocuments(fraction=0.2))
    return TextDataset(
        corpus=corpus, tokenizer=ByteTokenizer(), batch_size=6, sequence_length=16
    )


def find_offsets(rows: TokenDataset, seed: int, step: int) -> np.ndarray:
    wanted = rows.schedule.request(seed, step, slice(None))
    return rows.order.find_offsets(wanted, rows.store.size)


def build_reference(rows: TokenDataset, seed: int, step: int) -> list[list[list[int]]]:
    """The batch, by plain loops over documents and tokens."""
    stream = [
        (int(token), document, place)
        for document in range(rows.store.documents)
        for place, token in enumerate(rows.store.read_document(document))
    ]
    offsets = find_offsets(rows, seed, step)
    fields = [[], [], [], [], []]
    for offset in map(int, offsets):
        row = [[], [], [], [], []]
        for at in range(offset, offset + rows.schedule.stages[0].sequence_length):
            cell = [0, 0, 0, 0, 0]
            if at + 1 < len(stream):
                (token, document, place), (target, next_document, _) = stream[
                    at : at + 2
                ]
                _, first_document, _ = stream[offset]
                cell = [
                    token,
                    target,
                    int(document == next_document),
                    min(place, at - offset),
                    document - first_document + 1,
                ]
            for values, value in zip(row, cell, strict=True):
                values.append(value)
        for field, values in zip(fields, row, strict=True):
            field.append(values)
    return fields


@ORDERS
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer()], ids=str)
def test_batches_equal_those_of_a_plain_loop(tokens, order, tokenizer):
    rows = dataclasses.replace(tokens, order=order, tokenizer=tokenizer).open()
    for step in range(rows.info.steps or 12):
        batch = rows.batch_at(5, step)
        for got, wanted in zip(batch, build_reference(rows, 5, step), strict=True):
            assert got.tolist() == wanted


@ORDERS
def test_any_partition_of_the_rows_gives_the_same_batch(tokens, order):
    rows = dataclasses.replace(tokens, order=order).open()
    for step in range(3):
        whole = rows.batch_at(1, step)
        for cuts in ([0, 6], [0, 2, 4, 6], [0, 1, 6], range(7)):
            parts = [
                rows.batch_at(1, step, slice(a, b))
                for a, b in zip(cuts, cuts[1:], strict=False)
            ]
            assert same(whole, [np.concatenate(p) for p in zip(*parts, strict=True)])


def same(batch: Batch, arrays: list[np.ndarray]) -> bool:
    return all(map(np.array_equal, batch, arrays))


@pytest.mark.parametrize("order", [Shuffled(), Sequential()], ids=str)
def test_every_token_but_the_first_of_a_document_is_a_target_once_per_pass(
    tokens, order
):
    rows = dataclasses.replace(tokens, order=order, batch_size=1).open()
    targets = np.concatenate([
        batch.targets[batch.weights > 0]
        for batch in (rows.batch_at(0, step) for step in range(rows.info.steps or 0))
    ])  # fmt: skip
    later_tokens = np.delete(rows.store.parts[0], rows.store.starts[:-1])
    assert sorted(targets) == sorted(later_tokens)
    assert rows.info.token_bytes[targets].sum() == rows.store.bytes


def test_bytes_and_documents_are_counted(tokens):
    rows = tokens.open()
    texts = [text for _, text in tokens.corpus.read_nonempty("train")]
    assert rows.store.bytes == sum(len(text.encode()) for text in texts)
    assert rows.store.documents == len(texts)
    assert rows.store.size == rows.store.bytes + 2 * len(texts)


def test_a_late_step_needs_no_earlier_ones(tokens):
    rows = tokens.open()
    batches = [rows.batch_at(0, 10**9 + step).tokens for step in range(3)]
    assert len({batch.tobytes() for batch in batches}) == 3


def test_the_last_sequential_batch_ends_in_padding(tokens):
    rows = dataclasses.replace(tokens, order=Sequential(), batch_size=64).open()
    last = rows.batch_at(0, (rows.info.steps or 0) - 1)
    padding = last.segments == 0
    assert padding[-1].all() and not padding[0].any()
    assert all((field[padding] == 0).all() for field in last)


def test_random_windows_of_one_document_equal_nanogpt(write):
    path = write("a.txt", "".join(map(chr, range(32, 127))) * 5)
    rows = TextDataset(
        corpus=Text(path=path, holdout=HoldoutTail()),
        tokenizer=CharTokenizer(),
        batch_size=8,
        sequence_length=12,
        order=RandomWindows(),
    ).open()
    data = rows.store.parts[0]
    batch = rows.batch_at(0, 0)
    offsets = find_offsets(rows, 0, 0)
    x = np.stack([data[i : i + 12] for i in offsets])
    y = np.stack([data[i + 1 : i + 1 + 12] for i in offsets])
    assert (batch.tokens == x).all() and (batch.targets == y).all()
    assert (batch.weights == 1).all() and (batch.segments == 1).all()
    assert (batch.positions == np.arange(12)).all()


def test_fingerprints_of_different_data_differ(tokens):
    prints = [
        tokens.open().info.fingerprint,
        dataclasses.replace(tokens, split="validation").open().info.fingerprint,
        dataclasses.replace(tokens, tokenizer=CharTokenizer()).open().info.fingerprint,
    ]
    assert len({tuple(found.values()) for found in prints}) == 3
    assert set(prints[0]) == {"corpus", "tokenizer", "split"}


def test_it_opens_as_a_dataset(tokens):
    assert isinstance(tokens.open(), Dataset)


def test_a_batch_size_of_zero_is_refused(tokens):
    with pytest.raises(ConfigError, match=r"TextDataset\.batch_size is 0: it must"):
        dataclasses.replace(tokens, batch_size=0)


def test_a_text_of_one_token_is_refused(write):
    corpus = Text(path=write("a.txt", "ab"), holdout=HoldoutTail(fraction=0.5))
    with pytest.raises(ConfigError, match="has 1 tokens"):
        TextDataset(
            corpus=corpus, tokenizer=CharTokenizer(), batch_size=1, sequence_length=1
        ).open()
