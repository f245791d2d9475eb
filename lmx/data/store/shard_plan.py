"""Plans a build: which spans of the sources make up which shard."""

import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lmx.config.registry import (
    ConfigError,
    Execution,
    Fraction,
    Positive,
    require,
)
from lmx.config.resolve import Resolver
from lmx.config.value import Config
from lmx.data.corpus.corpus import Corpus, Span, Split
from lmx.data.curate.filter import Filter
from lmx.data.store.store import MANIFEST_FILE, read_manifest, read_records
from lmx.data.tokenizer.base import Tokenizer

WORK_DIR = ".building"  # within the folder of the store; removed after the build


class ShardSpec(NamedTuple):
    """The input of one shard: spans of one source, in order."""

    number: int
    source: str
    spans: tuple[Span, ...]

    @property
    def bytes(self) -> int:
        """Bytes of text, approximately."""
        return sum(span.bytes for span in self.spans)


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What documents a store has.

    Attributes:
        sources: corpora by their names in the store.
        filters: applied in order to each document.
        shard_bytes: bytes of text per file, approximately. A process works on a shard
            at a time, and a killed build repeats incomplete shards.
        max_invalid_fraction: maximum fraction of invalid documents, which are counted
            and left out; at 0 the first one is refused.
        max_empty_fraction: the same for documents without text.
    """

    sources: Mapping[str, Corpus]
    filters: tuple[Filter, ...] = ()
    split: Split = "train"
    shard_bytes: Positive[int] = 64 * 2**20
    max_invalid_fraction: Execution[Fraction[float]] = 0.0
    max_empty_fraction: Execution[Fraction[float]] = 0.1


@dataclass(frozen=True, kw_only=True)
class BuildJob(StoreSettings):
    """What all shards of a build have in common. It is sent to every process."""

    folder: Path
    tokenizer: Tokenizer

    @property
    def work_dir(self) -> Path:
        return self.folder / WORK_DIR

    @property
    def dtype(self) -> str:
        return "<u2" if self.tokenizer.vocab <= 2**16 else "<u4"

    def get_path(self, number: int, kind: str) -> Path:
        """Returns the path of a shard's `lengths` of documents or `json` record."""
        return self.work_dir / f"{number:05}.{kind}"

    def describe(self) -> dict[str, Any]:
        """Returns the settings that determine the tokens, as JSON."""
        return {
            "tokenizer": self.tokenizer.digest,
            "split": self.split,
            "filters": [_describe(rule) for rule in self.filters],
            "shard_bytes": self.shard_bytes,
            **{f"source {name!r}": _describe(c) for name, c in self.sources.items()},
        }


def _describe(value: Any) -> str:
    config = Resolver({}).resolve_default(value, (), type(value).__name__)
    return config.identity().to_json() if isinstance(config, Config) else repr(value)


def plan_shards(job: BuildJob) -> list[ShardSpec]:
    """Divides what is not in the store yet into shards, numbered after those there.

    Refuses a file that has changed since it was added to the store.
    """
    records = read_records(job.folder) if (job.folder / MANIFEST_FILE).is_file() else []
    if records:
        check_recipe(job.describe(), read_manifest(job.folder)["recipe"], job.folder)
    specs: list[ShardSpec] = []
    for name, corpus in job.sources.items():
        of_source = [record["spans"] for record in records if record["source"] == name]
        used = _group_by_file(span for spans in of_source for span in spans)
        spans = corpus.list_spans(job.shard_bytes)
        current = _group_by_file(list(span[:-1]) for span in spans)
        for file in used.keys() & current.keys():
            require(
                used[file] == current[file],
                f"{file!r} of source {name!r} is in the store and has changed"
                " since, so that added text cannot be separated: put new text into"
                " new files, or build another store.",
            )
        new = (span for span in spans if span.file not in used)
        for group in _group_by_size(new, job.shard_bytes):
            specs.append(ShardSpec(len(records) + len(specs), name, group))
    return specs


def _group_by_file(spans: Iterable[list]) -> dict[str, list[list]]:
    groups = itertools.groupby(spans, operator.itemgetter(0))
    return {file: list(group) for file, group in groups}


def _group_by_size(spans: Iterable[Span], size: int) -> Iterator[tuple[Span, ...]]:
    group: list[Span] = []
    total = 0
    for span in spans:
        if group and total + span.bytes > size:
            yield tuple(group)
            group, total = [], 0
        group.append(span)
        total += span.bytes
    if group:
        yield tuple(group)


def find_missing(job: BuildJob, specs: Sequence[ShardSpec]) -> list[ShardSpec]:
    """Returns the shards that a stopped build has not finished.

    Refuses to resume if a finished shard had another input, or other settings.
    """
    planned = {spec.number: spec for spec in specs}
    for path in sorted(job.work_dir.glob("*.json")):
        record, spec = json.loads(path.read_text()), planned.pop(int(path.stem), None)
        resume = record["resume"]
        check_recipe(job.describe(), resume["recipe"], job.folder)
        spans = [list(span) for span in spec.spans] if spec else []
        if spans != resume["spans"]:
            changed = [span for span in resume["spans"] if span not in spans]
            raise ConfigError(
                f"{job.folder}: source {record['source']!r} has changed since this"
                f" build began, at {[*changed, *spans][0][0]!r}: restore it, or delete"
                f" {job.work_dir} to start again."
            )
    return list(planned.values())


def check_recipe(new: Mapping[str, Any], old: Mapping[str, Any], folder: Path) -> None:
    """Refuses to combine shards that are built with different settings."""
    for name in new.keys() & old.keys():
        require(
            new[name] == old[name],
            f"{folder} was started with {name} {f'{old[name]}':.80}, now it is"
            f" {f'{new[name]}':.80}: restore it, or build into another folder.",
        )
