"""Small token stores of bytes, and files to build them from."""

import json
from pathlib import Path

import pytest

from lmx.data.corpus.corpus import HoldoutDocuments
from lmx.data.corpus.text import Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.store.store import Store
from lmx.data.tokenizer.base import ByteTokenizer

ALL = HoldoutDocuments(fraction=0.0)


def to_lines(*items: object) -> str:
    """Returns the items as JSON objects, one per line."""
    return "".join(json.dumps({"text": item}) + "\n" for item in items)


def read_texts(store: Store) -> list[str]:
    """Returns every document of a store of bytes."""
    decode = ByteTokenizer().decode
    return [decode(store.read_document(number)) for number in range(store.documents)]


def read_files(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in files}


def make_config(path: str | Path, **fields) -> BuildTokenStore:
    """Returns a build of one source of text, in this process."""
    corpus = Text(path=f"{path}", holdout=ALL, suffixes=(".jsonl", ".txt"))
    defaults = {
        "sources": {"a": corpus},
        "tokenizer": ByteTokenizer(),
        "executor": ProcessPool(workers=1),
    }
    return BuildTokenStore(**{**defaults, **fields})


@pytest.fixture
def folder(tmp_path, write) -> Path:
    """JSON lines in three files, and one text file."""
    for name in "bca":
        items = [f"{name}{number} ä" * (number % 7 + 1) for number in range(40)]
        write(f"texts/{name}.jsonl", to_lines(*items))
    write("texts/z.txt", "the last")
    return tmp_path / "texts"
