"""Rows of stores that were built, against the documents that went in."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lmx.config.names import ConfigError
from lmx.config.resolve import load
from lmx.data.batches import Rows
from lmx.data.corpora.corpus import ByDocument
from lmx.data.corpora.text import Text
from lmx.data.rows.mixture import Mixture, Part
from lmx.data.rows.order import InOrder
from lmx.data.rows.packing import BestFit
from lmx.data.store.build import Build
from lmx.data.store.engine import Processes
from lmx.data.stored import Stored
from lmx.data.tokenizers.codec import DESCRIPTION, Characters

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
        sources[name] = Text(path=path, split=ByDocument(fraction=0.0))
    build = Build(
        sources={name: sources[name] for name in ("web", "books", "code")},
        tokenizer=Characters(),
        shard=300,
        engine=Processes(count=1),
    )
    build.write(tmp_path / "store")
    return tmp_path / "store"


def texts(rows) -> list[str]:
    """What the segments of a pass say, one character a token."""
    found = []
    for step in range(rows.steps):
        batch = rows.batch_at(0, step)
        for row, t in np.argwhere(batch.segments > 0):
            if batch.positions[row, t] == 0:
                found.append([batch.tokens[row, t]])
            if batch.weights[row, t]:
                found[-1].append(batch.targets[row, t])
    return [rows.tokenizer.decode(tokens) for tokens in found]


@pytest.mark.parametrize("name", [*NAMES, None])
def test_a_pass_reads_the_documents_of_its_source_and_no_other(folder, name):
    stored = Stored(
        path=str(folder), source=name, batch=4, length=128, order=InOrder(),
        packing=BestFit(),
    )  # fmt: skip
    rows = stored.open()
    assert isinstance(rows, Rows)
    wanted = [
        text(n, i) for n in (NAMES if name is None else [name]) for i in range(30)
    ]
    assert sorted(texts(rows)) == sorted(wanted)
    assert rows.bytes == sum(len(document.encode()) for document in wanted)
    assert rows.documents == len(wanted)
    assert rows.tokens == sum(map(len, wanted))


def test_sources_of_one_store_are_told_apart(folder):
    stored = Stored(path=str(folder), batch=4, length=16)
    prints = {
        json.dumps(dict(dataclasses.replace(stored, source=name).open().fingerprint))
        for name in (*NAMES, None)
    }
    assert len(prints) == 4


def test_where_a_store_lies_changes_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    stored = Stored(path=str(folder), source="web", batch=4, length=16)
    moved = dataclasses.replace(stored, path=str(tmp_path / "elsewhere"))
    one, two = stored.open(), moved.open()
    assert one.fingerprint == two.fingerprint
    for a, b in zip(one.batch_at(1, 9), two.batch_at(1, 9), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_source_that_is_not_there_is_refused_by_name(folder):
    stored = Stored(path=str(folder), source="wbe", batch=4, length=16)
    with pytest.raises(
        ConfigError, match="store has no source 'wbe'; did you mean 'web'"
    ):
        stored.open()


def test_a_tokenizer_that_changed_after_the_build_is_refused_by_name(folder):
    path = folder / DESCRIPTION
    told = json.loads(path.read_text())
    told["characters"] = told["characters"][:-1] + "~"
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=f"tokenizer in {folder} is not the one its"):
        Stored(path=str(folder), batch=4, length=16).open()


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no token store"):
        Stored(path=str(tmp_path), batch=4, length=16).open()


def test_a_page_can_mix_the_sources_of_a_store(folder):
    page = [
        "Mixture.parts={'web': @web/Part(), 'code': @code/Part()}",
        "web/Part.source=@web/Stored()",
        "code/Part.source=@code/Stored()",
        "web/Part.weight=0.75",
        "code/Part.weight=0.25",
        f"Stored.path={folder}",
        "web/Stored.source=web",
        "code/Stored.source=code",
        "Stored.batch=8",
        "Stored.length=128",
        "Stored.packing=@BestFit()",
    ]
    config = load([], page, root=Mixture)
    rows = config.build().open()
    codec = rows.tokenizer
    assert codec is not None
    for step in range(10):
        batch = rows.batch_at(0, step)
        says = [codec.decode(row)[:3] for row in batch.tokens]
        assert says.count("web") == 6 and says.count("cod") == 2
    stored = Stored(path=str(folder), source="web", batch=8, length=128)
    parts = {"web": Part(source=stored), "code": Part(source=stored)}
    assert Mixture(parts=parts).open().fingerprint.keys() > {
        "web.tokens",
        "code.source",
    }
