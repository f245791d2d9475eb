"""Small stores of bytes, and files to build them of."""

import json
from pathlib import Path

import pytest

from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.store.store import Store
from lmx.data.tokenizer.base import ByteCodec, ByteTokenizer

ALL = HoldoutDocuments(fraction=0.0)
ONE = ProcessPool(workers=1)


def lines(*items: object) -> str:
    """Items as JSON objects by the line."""
    return "".join(json.dumps({"text": item}) + "\n" for item in items)


def texts(store: Store) -> list[str]:
    """Every document of a store of bytes."""
    codec = ByteCodec()
    return [
        codec.decode(store.read_document(number)) for number in range(store.documents)
    ]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in files}


def page(path: str | Path, **fields) -> BuildTokenStore:
    """A build of one source of text, in this process."""
    corpus = Text(path=f"{path}", holdout=ALL, suffixes=(".jsonl", ".txt"))
    given = {
        "sources": {"a": corpus},
        "tokenizer": ByteTokenizer(),
        "engine": ONE,
        **fields,
    }
    return BuildTokenStore(**given)


@pytest.fixture
def folder(tmp_path, write) -> Path:
    """Files of lines, and of one text."""
    for name in "bca":
        items = [f"{name}{number} ä" * (number % 7 + 1) for number in range(40)]
        write(f"texts/{name}.jsonl", lines(*items))
    write("texts/z.txt", "the last")
    return tmp_path / "texts"
