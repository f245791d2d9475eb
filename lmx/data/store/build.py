"""From a page to a token store: what is to be built, and the building of it."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmx.config.reader import Resolver
from lmx.config.registry import ConfigError, Execution, configurable
from lmx.config.value import Config
from lmx.core.files import write_atomic
from lmx.data.corpus.corpus import Corpus, Document, Split
from lmx.data.curate.filter import Filter
from lmx.data.store import shard_plan
from lmx.data.store.build_progress import BuildProgress
from lmx.data.store.commit import commit
from lmx.data.store.executor import Executor, ProcessPool
from lmx.data.store.shard_writer import WORK_DIR, BuildJob, ShardSpec
from lmx.data.store.store import MANIFEST_FILE, Store, open_store, read_manifest
from lmx.data.tokenizer.base import TokenizerConfig


@configurable
@dataclass(frozen=True, kw_only=True)
class BuildTokenStore:
    """What a token store is made of, and how.

    Attributes:
        sources: corpora by the names that the store knows them by.
        filters: each in turn sees what those before it left.
        shard: bytes of text that make one file, roughly: what is done again after a
            kill, and what one process does at a time.
        broken: the fraction of documents that may be no text, before the store is
            refused. They are counted and left out; at 0 the first is refused.
        empty: the same of documents without a character.
    """

    sources: Mapping[str, Corpus]
    tokenizer: TokenizerConfig
    filters: tuple[Filter, ...] = ()
    split: Split = "train"
    shard_bytes: int = 64 * 2**20
    max_invalid_fraction: Execution[float] = 0.0
    max_empty_fraction: Execution[float] = 0.1
    executor: Execution[Executor] = ProcessPool()

    def __post_init__(self):
        if not self.sources:
            raise ConfigError(
                "BuildTokenStore.sources names no corpus: {'books': @Text()}"
            )
        if self.shard_bytes < 1:
            raise ConfigError(
                f"BuildTokenStore.shard_bytes is {self.shard_bytes}: at least 1 byte."
            )
        for name in ("max_invalid_fraction", "max_empty_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"BuildTokenStore.{name} is {getattr(self, name)}: 0 to 1."
                )

    def write(self, folder: Path) -> Store:
        """Builds the store, or goes on with it, or adds what it does not have yet.

        The bytes depend on the sources, the tokenizer, the filters and `shard_bytes`: not on
        the engine, nor on how often the building was stopped.
        """
        with _lock_folder(folder):
            codec = self.tokenizer.open(ConcatCorpus(tuple(self.sources.values())))
            job = BuildJob(
                folder=folder,
                sources=self.sources,
                codec=codec,
                split=self.split,
                filters=self.filters,
                max_invalid_fraction=self.max_invalid_fraction,
            )
            recipe = {
                "tokenizer": codec.digest,
                "split": self.split,
                "filters": [describe(rule) for rule in self.filters],
                "shard": self.shard_bytes,
            }
            names = {name: describe(c) for name, c in self.sources.items()}
            _build_missing(job, recipe, names, self)
        return open_store(folder)


@dataclass(frozen=True)
class ConcatCorpus(Corpus):
    """Corpora one after the other, as a tokenizer learns from them."""

    corpora: tuple[Corpus, ...]

    def read(self, split: Split) -> Iterator[Document]:
        for number, corpus in enumerate(self.corpora):
            for name, text in corpus.read(split):
                yield Document(f"{number}/{name}", text)


def describe(thing: Any) -> str:
    """A configurable value in words that are the same where it means the same."""
    config = Resolver({}).resolve_default(thing, (), type(thing).__name__)
    return config.identity().to_json() if isinstance(config, Config) else repr(thing)


def _build_missing(
    job: BuildJob,
    recipe: Mapping[str, Any],
    sources: Mapping[str, str],
    build: BuildTokenStore,
) -> None:
    """Builds what is missing in the folder of the job."""
    old = read_manifest(job.folder) if (job.folder / MANIFEST_FILE).is_file() else None
    if old is not None:
        shard_plan.check_recipe(recipe, old["recipe"], job.folder)
        shard_plan.check_sources(sources, old["sources"], job.folder)
    first = 0 if old is None else len(old["shards"])
    todo = shard_plan.plan_shards(
        build.sources, build.shard_bytes, first, shard_plan.read_used_spans(job.folder)
    )
    if todo:
        _start(job, recipe, todo)
        build_shards(job, todo, build.executor, f"building {job.folder}")
        known = {**(old["sources"] if old else {}), **sources}
        commit(
            job,
            todo,
            recipe,
            known,
            {"broken": build.max_invalid_fraction, "empty": build.max_empty_fraction},
        )
    clean(job)
    shutil.rmtree(job.work_dir, ignore_errors=True)


def clean(job: BuildJob) -> None:
    """Takes away the halves of files that a kill has left."""
    for left in (*job.folder.glob(".*"), *job.work_dir.glob(".*")):
        if left.is_file():
            left.unlink(missing_ok=True)


def _start(job: BuildJob, recipe: Mapping[str, Any], todo: Sequence[ShardSpec]) -> None:
    """Says what is begun, or that this is what was begun."""
    path = job.work_dir / shard_plan.PLAN_FILE
    if path.is_file():
        shard_plan.check_plan(recipe, todo, json.loads(path.read_text()), job.work_dir)
        clean(job)
        return
    shutil.rmtree(job.work_dir, ignore_errors=True)
    job.work_dir.mkdir()
    write_atomic(path, json.dumps({"recipe": recipe, "pieces": todo}).encode())


def build_shards(
    job: BuildJob, todo: Sequence[ShardSpec], engine: Executor, title: str
) -> None:
    """Writes the shards of those pieces that have none yet."""
    missing = [piece for piece in todo if not shard_plan.is_finished(job, piece)]
    total = {piece.number: piece.bytes for piece in todo}
    done = sum(total.values()) - sum(piece.bytes for piece in missing)
    with BuildProgress(title, sum(total.values()), done) as meter:
        engine.run(job, missing, lambda word: meter.update(word, total[word.shard]))


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """The folder of a store for one builder at a time, made if it is not there."""
    if folder.is_dir():
        there = {path.name for path in folder.iterdir()}
        if there and not there & {MANIFEST_FILE, WORK_DIR}:
            raise ConfigError(
                f"{folder} holds something that is no token store: name a folder that"
                " is empty or not there."
            )
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"{folder} is being built by another process.") from None
    finally:
        os.close(handle)
