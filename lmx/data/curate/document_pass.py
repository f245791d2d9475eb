"""Documents sifted into a new folder: what is kept, what is not, and why."""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from lmx.config.registry import ConfigError
from lmx.core.console import byte_progress
from lmx.core.files import create_dir
from lmx.data.corpus.corpus import SPLITS, Corpus, Document, InvalidDocument, SpanCorpus

KEPT, REMOVED, REPORT = "kept", "removed.jsonl", "report.json"
EMPTY_REASON = "no text"
SPAN_BYTES = 64 * 2**20  # bytes that are listed at a time
Items = Iterator[Document | InvalidDocument]


def read_all_splits(corpus: Corpus) -> Items:
    """The documents of both splits, and what is none."""
    if isinstance(corpus, SpanCorpus):
        for span in corpus.list_spans(SPAN_BYTES):
            yield from corpus.read_all(span)
    else:
        for split in SPLITS:
            yield from corpus.read(split)


class DocumentPass(ABC):
    """What parts documents into those that are kept and those that are not.

    The folder it writes has a file of each source's documents, `kept/NAME.jsonl`, which
    `WeightedTokens` reads; `removed.jsonl`, a line for each document that is not there, or that
    is there with another text; and `report.json`, their counts.
    """

    sources: Mapping[str, Corpus]

    @abstractmethod
    def process(self, tray: "DocumentWriter") -> None:
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
            with DocumentWriter(fresh, type(self).__name__) as tray:
                self.process(tray)

        create_dir(folder, fill, "nothing is overwritten: name a folder that is not.")
        return json.loads((folder / REPORT).read_text())

    def read_documents(self, tray: "DocumentWriter") -> Iterator[tuple[str, Document]]:
        """The documents of all sources by the name of theirs.

        Those without text are removed, and one that is no text is refused.
        """
        for source, corpus in self.sources.items():
            tray.open_source(source)
            for item in read_all_splits(corpus):
                if isinstance(item, Document):
                    yield source, item
                elif item.kind == "broken":
                    raise item.to_error()
                else:
                    tray.remove(
                        source, f"{item.path.name}: {item.location}", EMPTY_REASON
                    )


class DocumentWriter:
    """Where sifted documents go."""

    def __init__(self, folder: Path, title: str):
        self.folder, self.files = folder, ExitStack()
        self.kept: dict[str, TextIO] = {}
        self.counts: dict[str, dict[str, Any]] = {}
        self.bar = byte_progress(title)

    def __enter__(self) -> "DocumentWriter":
        (self.folder / KEPT).mkdir()
        self.removed = self._open_file(self.folder / REMOVED)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.bar.close()
        self.files.close()
        if kind is None:
            text = json.dumps({"sources": self.counts}, indent=1)
            (self.folder / REPORT).write_text(text + "\n")

    def open_source(self, source: str) -> None:
        """Makes the file of a source."""
        self.kept[source] = self._open_file(self.folder / KEPT / f"{source}.jsonl")
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
        _write_line(self.kept[source], name=document.name, text=document.text)
        self.bar.update(size)

    def remove(self, source: str, name: str, reason: str, **more: Any) -> None:
        """Logs a document that goes, why, and what more there is to say of it."""
        self.counts[source]["documents"] += 1
        self.counts[source]["removed"][reason] += 1
        _write_line(self.removed, source=source, name=name, reason=reason, **more)

    def record_change(self, source: str, name: str, how: str) -> None:
        """Logs that a document has another text now."""
        self.counts[source]["changed"][how] += 1
        _write_line(self.removed, source=source, name=name, changed=how)

    def _open_file(self, path: Path) -> TextIO:
        return self.files.enter_context(path.open("w", encoding="utf-8"))


def _write_line(file: TextIO, **said: Any) -> None:
    file.write(f"{json.dumps(said, ensure_ascii=False)}\n")
