"""Rows of stores that were built, against the documents that went in."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.config.resolve import load
from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.dataset import Dataset
from lmx.data.sampling.mixture import Mixture, MixtureComponent
from lmx.data.sampling.order import Sequential
from lmx.data.sampling.packing import BestFitPacking
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.text_dataset import TokenStoreDataset
from lmx.data.tokenizer.base import SETTINGS, TOKENIZER_DIR, CharTokenizer

NAMES = ("books", "code", "web")


def text(name: str, number: int) -> str:
    return f"{name} {number} " * (number % 7 + 1)


@pytest.fixture
def folder(tmp_path, write):
    """A store of three sources, many small shards, and one source added later."""
    sources = {}
    for name in NAMES:
        for number in range(30):
            write(f"{name}/{number:02}.txt", text(name, number))
        path = str(tmp_path / name)
        sources[name] = Text(path=path, holdout=HoldoutDocuments(fraction=0.0))
    build = BuildTokenStore(
        sources={name: sources[name] for name in ("web", "books", "code")},
        tokenizer=CharTokenizer(),
        shard_bytes=300,
        executor=ProcessPool(workers=1),
    )
    build.write(tmp_path / "store")
    return tmp_path / "store"


def texts(rows) -> list[str]:
    """What the segments of a pass say, one character a token."""
    found = []
    for step in range(rows.info.steps):
        batch = rows.batch_at(0, step)
        for row, t in np.argwhere(batch.segments > 0):
            if batch.positions[row, t] == 0:
                found.append([batch.tokens[row, t]])
            if batch.weights[row, t]:
                found[-1].append(batch.targets[row, t])
    return [rows.info.tokenizer.decode(tokens) for tokens in found]


@pytest.mark.parametrize("name", [*NAMES, None])
def test_a_pass_reads_the_documents_of_its_source_and_no_other(folder, name):
    stored = TokenStoreDataset(
        path=str(folder), source=name, batch_size=4, sequence_length=128,
        order=Sequential(),
        packing=BestFitPacking(),
    )  # fmt: skip
    rows = stored.open()
    assert isinstance(rows, Dataset)
    wanted = [
        text(n, i) for n in (NAMES if name is None else [name]) for i in range(30)
    ]
    assert sorted(texts(rows)) == sorted(wanted)
    assert rows.store.bytes == sum(len(document.encode()) for document in wanted)
    assert rows.store.documents == len(wanted)
    assert rows.store.size == sum(map(len, wanted))


def test_sources_of_one_store_are_told_apart(folder):
    stored = TokenStoreDataset(path=str(folder), batch_size=4, sequence_length=16)
    prints = {
        json.dumps(
            dict(dataclasses.replace(stored, source=name).open().info.fingerprint)
        )
        for name in (*NAMES, None)
    }
    assert len(prints) == 4


def test_where_a_store_lies_changes_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    stored = TokenStoreDataset(
        path=str(folder), source="web", batch_size=4, sequence_length=16
    )
    moved = dataclasses.replace(stored, path=str(tmp_path / "elsewhere"))
    one, two = stored.open(), moved.open()
    assert one.info.fingerprint == two.info.fingerprint
    for a, b in zip(one.batch_at(1, 9), two.batch_at(1, 9), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_source_that_is_not_there_is_refused_by_name(folder):
    stored = TokenStoreDataset(
        path=str(folder), source="wbe", batch_size=4, sequence_length=16
    )
    with pytest.raises(
        ConfigError, match="store has no source 'wbe'; did you mean 'web'"
    ):
        stored.open()


def test_a_tokenizer_that_changed_after_the_build_is_refused_by_name(folder):
    path = folder / TOKENIZER_DIR / SETTINGS
    settings = json.loads(path.read_text())
    settings["characters"] = settings["characters"][:-1] + "~"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=f"tokenizer in {folder} is not the one its"):
        TokenStoreDataset(path=str(folder), batch_size=4, sequence_length=16).open()


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a token store"):
        TokenStoreDataset(path=str(tmp_path), batch_size=4, sequence_length=16).open()


def test_a_page_can_mix_the_sources_of_a_store(folder):
    page = [
        "Mixture.components={'web': @web/MixtureComponent(),"
        " 'code': @code/MixtureComponent()}",
        "web/MixtureComponent.source=@web/TokenStoreDataset()",
        "code/MixtureComponent.source=@code/TokenStoreDataset()",
        "web/MixtureComponent.weight=0.75",
        "code/MixtureComponent.weight=0.25",
        f"TokenStoreDataset.path={folder}",
        "web/TokenStoreDataset.source=web",
        "code/TokenStoreDataset.source=code",
        "TokenStoreDataset.batch_size=8",
        "TokenStoreDataset.sequence_length=128",
        "TokenStoreDataset.packing=@BestFitPacking()",
    ]
    config = load([], page, root=Mixture)
    rows = config.build().open()
    codec = rows.info.tokenizer
    assert codec is not None
    for step in range(10):
        batch = rows.batch_at(0, step)
        says = [codec.decode(row)[:3] for row in batch.tokens]
        assert says.count("web") == 6 and says.count("cod") == 2
    stored = TokenStoreDataset(
        path=str(folder), source="web", batch_size=8, sequence_length=128
    )
    parts = {
        "web": MixtureComponent(source=stored),
        "code": MixtureComponent(source=stored),
    }
    assert Mixture(components=parts).open().info.fingerprint.keys() > {
        "web.tokens",
        "code.source",
    }
