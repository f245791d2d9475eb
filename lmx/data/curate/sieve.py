"""Documents sifted into a new folder: what is kept, what is not, and why."""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from lmx.config.names import ConfigError
from lmx.data.cache import new_folder
from lmx.data.corpora.corpus import SPLITS, Corpus, Document, Fault, Parted
from lmx.data.progress import bytes_bar

KEPT, REMOVED, REPORT = "kept", "removed.jsonl", "report.json"
EMPTY = "no text"
PART = 64 * 2**20  # bytes that are listed at a time
Items = Iterator[Document | Fault]


def every(corpus: Corpus) -> Items:
    """The documents of both splits, and what is none."""
    if isinstance(corpus, Parted):
        for span in corpus.spans(PART):
            yield from corpus.every(span)
    else:
        for split in SPLITS:
            yield from corpus.read(split)


class Sieve(ABC):
    """What parts documents into those that are kept and those that are not.

    The folder it writes has a file of each source's documents, `kept/NAME.jsonl`, which
    `Text` reads; `removed.jsonl`, a line for each document that is not there, or that
    is there with another text; and `report.json`, their counts.
    """

    sources: Mapping[str, Corpus]

    @abstractmethod
    def sift(self, tray: "Tray") -> None:
        """Gives every document of every source to the tray, in order."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Sifts into a new folder, which is whole or not there. Returns the report."""
        for name in self.sources:
            if not re.fullmatch(r"[\w-]+", name):
                raise ConfigError(
                    f"{name!r} cannot name a file: name sources in letters, digits, _"
                    " and -."
                )
        if not self.sources:
            raise ConfigError(f"{type(self).__name__}.sources names no corpus.")

        def fill(fresh: Path) -> None:
            with Tray(fresh, type(self).__name__) as tray:
                self.sift(tray)

        new_folder(folder, fill, "nothing is overwritten: name a folder that is not.")
        return json.loads((folder / REPORT).read_text())

    def documents(self, tray: "Tray") -> Iterator[tuple[str, Document]]:
        """The documents of all sources by the name of theirs.

        Those without text are removed, and one that is no text is refused.
        """
        for source, corpus in self.sources.items():
            tray.open(source)
            for item in every(corpus):
                if isinstance(item, Document):
                    yield source, item
                elif item.kind == "broken":
                    raise item.refusal()
                else:
                    tray.remove(source, f"{item.path.name}: {item.place}", EMPTY)


class Tray:
    """Where sifted documents go."""

    def __init__(self, folder: Path, title: str):
        self.folder, self.files = folder, ExitStack()
        self.kept: dict[str, TextIO] = {}
        self.counts: dict[str, dict[str, Any]] = {}
        self.bar = bytes_bar(title)

    def __enter__(self) -> "Tray":
        (self.folder / KEPT).mkdir()
        self.removed = self._file(self.folder / REMOVED)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.bar.close()
        self.files.close()
        if kind is None:
            text = json.dumps({"sources": self.counts}, indent=1)
            (self.folder / REPORT).write_text(text + "\n")

    def open(self, source: str) -> None:
        """Makes the file of a source."""
        self.kept[source] = self._file(self.folder / KEPT / f"{source}.jsonl")
        self.counts[source] = {
            "documents": 0,
            "kept": 0,
            "bytes": 0,
            "removed": Counter(),
            "changed": Counter(),
        }

    def keep(self, source: str, document: Document) -> None:
        """Writes a document that stays."""
        count, size = self.counts[source], len(document.text.encode())
        count["documents"] += 1
        count["kept"] += 1
        count["bytes"] += size
        _line(self.kept[source], name=document.name, text=document.text)
        self.bar.update(size)

    def remove(self, source: str, name: str, reason: str, **more: Any) -> None:
        """Logs a document that goes, why, and what more there is to say of it."""
        self.counts[source]["documents"] += 1
        self.counts[source]["removed"][reason] += 1
        _line(self.removed, source=source, name=name, reason=reason, **more)

    def change(self, source: str, name: str, how: str) -> None:
        """Logs that a document has another text now."""
        self.counts[source]["changed"][how] += 1
        _line(self.removed, source=source, name=name, changed=how)

    def _file(self, path: Path) -> TextIO:
        return self.files.enter_context(path.open("w", encoding="utf-8"))


def _line(file: TextIO, **said: Any) -> None:
    file.write(f"{json.dumps(said, ensure_ascii=False)}\n")
