"""Passes over documents that write a new folder: what is kept, what is not, and why."""

import itertools
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from lmx.config.registry import require
from lmx.core.console import byte_progress
from lmx.core.files import create_dir
from lmx.data.corpus.corpus import (
    SPAN_BYTES,
    SPLITS,
    Corpus,
    Document,
    Items,
    SpanCorpus,
)

KEPT, REMOVED, REPORT = "kept", "removed.jsonl", "report.json"
EMPTY_REASON = "no text"


def read_all_splits(corpus: Corpus) -> Items:
    """Yields the documents of both splits, and invalid entries."""
    if isinstance(corpus, SpanCorpus):
        spans = corpus.list_spans(SPAN_BYTES)
        return itertools.chain.from_iterable(map(corpus.read_all, spans))
    return itertools.chain.from_iterable(map(corpus.read, SPLITS))


def read_valid(corpus: Corpus) -> Iterator[Document]:
    """Yields the documents of both splits."""
    return (item for item in read_all_splits(corpus) if isinstance(item, Document))


class DocumentPass(ABC):
    """Divides documents into those that are kept and those that are removed.

    Writes a folder with `kept/NAME.jsonl` for each source, which `Text` reads;
    `removed.jsonl`, with a line for each removed or changed document; and
    `report.json`, with counts.
    """

    sources: Mapping[str, Corpus]

    @abstractmethod
    def process(self, writer: "DocumentWriter") -> None:
        """Passes every document of every source to the writer, in order."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes a new folder, which appears once complete. Returns the report."""
        require(self.sources, f"{type(self).__name__}.sources names no corpus.")
        for name in self.sources:
            require(
                re.fullmatch(r"[\w-]+", name),
                f"{name!r} cannot be a file name: name sources with letters,"
                " digits, _ and -.",
            )
        with create_dir(folder, "nothing is overwritten: name a new folder.") as new:
            with ExitStack() as files:
                writer = DocumentWriter(new, list(self.sources), files)
                self.process(writer)
            report = json.dumps({"sources": writer.counts}, indent=1)
            (new / REPORT).write_text(f"{report}\n")
        return json.loads((folder / REPORT).read_text())

    def read_documents(
        self, writer: "DocumentWriter"
    ) -> Iterator[tuple[str, Document]]:
        """Yields the documents of all sources, each with the name of its source.

        Removes documents without text, and refuses invalid ones.
        """
        for source, corpus in self.sources.items():
            for item in read_all_splits(corpus):
                if isinstance(item, Document):
                    yield source, item
                elif item.kind == "invalid":
                    raise item.to_error()
                else:
                    name = f"{item.path.name}: {item.location}"
                    writer.remove(source, name, EMPTY_REASON)


class DocumentWriter:
    """Writes and counts the documents of a pass."""

    def __init__(self, folder: Path, sources: list[str], files: ExitStack):
        def open_file(path: Path) -> TextIO:
            return files.enter_context(path.open("w", encoding="utf-8"))

        (folder / KEPT).mkdir()
        self._kept = {s: open_file(folder / KEPT / f"{s}.jsonl") for s in sources}
        self._removed = open_file(folder / REMOVED)
        self._bar = files.enter_context(byte_progress("documents"))
        self.counts: dict[str, dict[str, Any]] = {
            source: {
                **{"documents": 0, "kept": 0, "bytes": 0},
                **{"removed": Counter(), "changed": Counter()},
            }
            for source in sources
        }

    def keep(self, source: str, document: Document) -> None:
        counts, size = self.counts[source], len(document.text.encode())
        counts["documents"] += 1
        counts["kept"] += 1
        counts["bytes"] += size
        _write_line(self._kept[source], **document._asdict())
        self._bar.update(size)

    def remove(self, source: str, name: str, reason: str, **details: Any) -> None:
        self.counts[source]["documents"] += 1
        self.counts[source]["removed"][reason] += 1
        _write_line(self._removed, source=source, name=name, reason=reason, **details)

    def record_change(self, source: str, name: str, change: str) -> None:
        """Logs a kept document whose text was changed."""
        self.counts[source]["changed"][change] += 1
        _write_line(self._removed, source=source, name=name, changed=change)


def _write_line(file: TextIO, **fields: Any) -> None:
    file.write(f"{json.dumps(fields, ensure_ascii=False)}\n")
