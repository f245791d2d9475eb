"""Builds token stores from corpora: of a config, or in the cache."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmx.config.registry import (
    ConfigError,
    Execution,
    check_fields,
    configurable,
    require,
)
from lmx.core import console
from lmx.core.files import create_dir_once, get_cache_path, remove_dir
from lmx.data.corpus.corpus import Corpus, Document, Span, Split
from lmx.data.store.executor import Executor, ProcessPool
from lmx.data.store.shard_plan import (
    WORK_DIR,
    BuildJob,
    ShardSpec,
    StoreSettings,
    find_missing,
    plan_shards,
)
from lmx.data.store.shard_writer import ShardCounts, commit
from lmx.data.store.store import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Store,
    StoreDamageError,
    open_store,
)
from lmx.data.tokenizer.base import Tokenizer, TokenizerConfig

ATTEMPTS = 3  # another process may remove what this one has just built


@configurable
@dataclass(frozen=True, kw_only=True)
class BuildTokenStore(StoreSettings):
    """Tokenizes corpora into a token store."""

    tokenizer: TokenizerConfig
    executor: Execution[Executor] = ProcessPool()

    def __post_init__(self):
        rule = "corpora by name, {'books': @Text()}"
        check_fields(self, sources=(bool(self.sources), rule))

    def write(self, folder: Path) -> Store:
        """Builds the store, resumes a stopped build, or adds what is new.

        The bytes depend on the sources, the tokenizer, the filters and `shard_bytes`,
        not on the executor or on how often the build was stopped.
        """
        with _lock_folder(folder):
            tokenizer = self.tokenizer.open(ConcatCorpus(tuple(self.sources.values())))
            names = [field.name for field in dataclasses.fields(StoreSettings)]
            settings = {name: getattr(self, name) for name in names}
            job = BuildJob(folder=folder, tokenizer=tokenizer, **settings)
            build(job, self.executor, f"building {folder}")
        return open_store(folder)


@dataclass(frozen=True)
class ConcatCorpus(Corpus):
    """Corpora one after another, as a tokenizer is trained on them."""

    corpora: tuple[Corpus, ...]

    def read_span(self, span: Span, split: Split) -> Iterator[Document]:
        for number, corpus in enumerate(self.corpora):
            for name, text in corpus.read(split):
                yield Document(f"{number}/{name}", text)


def build(job: BuildJob, executor: Executor, title: str) -> None:
    """Builds and commits the shards that are not in the store yet."""
    if specs := plan_shards(job):
        job.work_dir.mkdir(exist_ok=True)
        missing = find_missing(job, specs)
        with contextlib.closing(BuildProgress(title, specs, missing)) as progress:
            if missing:
                executor.run(job, missing, progress.update)
        commit(job, specs)
    shutil.rmtree(job.work_dir, ignore_errors=True)
    for path in job.folder.rglob(".*"):  # incomplete files of a killed build
        path.unlink()


class BuildProgress:
    """A bar on a terminal, or a line now and then elsewhere.

    Shows documents, MB/s, tokens/s and the time left, after the first second.
    """

    def __init__(
        self, title: str, specs: Sequence[ShardSpec], missing: Sequence[ShardSpec]
    ):
        self._title = title
        self._bytes = {spec.number: spec.bytes for spec in specs}
        self._total = sum(self._bytes.values())
        self._initial = self._total - sum(spec.bytes for spec in missing)
        self._shards: dict[int, ShardCounts] = {}
        self._started = self._printed = time.monotonic()
        self._bar = console.byte_progress(title, self._total)
        self._bar.update(self._initial)
        self._bar.unpause()
        self.close = self._bar.close

    def update(self, counts: ShardCounts) -> None:
        self._shards[counts.shard] = counts
        shards, now = self._shards.values(), time.monotonic()
        sizes = [(self._bytes[shard.shard], shard) for shard in shards]
        done = sum(n if shard.done else min(shard.bytes, n) for n, shard in sizes)
        seconds = max(now - self._started, 1e-3)
        rates = (
            f"{sum(shard.documents for shard in shards):,} documents,"
            f" {sum(shard.bytes for shard in shards) / 1e6 / seconds:.1f} MB/s,"
            f" {sum(shard.tokens for shard in shards) / seconds:,.0f} tokens/s"
        )
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(self._initial + done - self._bar.n)
        if not sys.stderr.isatty() and now - self._printed > console.LINE_INTERVAL:
            self._printed = now
            left = (self._total - self._initial - done) * seconds / max(done, 1)
            console.print_line(f"{self._title}: {rates}, {left / 60:.0f} minutes left")


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Creates the folder of a store if necessary, and locks it for one build."""
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        require(
            not names or names & {MANIFEST_FILE, WORK_DIR},
            f"{folder} is not empty and not a token store: name a new or empty folder.",
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


def open_cached_store(corpus: Corpus, tokenizer: Tokenizer, split: Split) -> Store:
    """Opens the tokens of a split; builds them if they are missing or damaged."""
    digests = {"corpus": corpus.compute_digest(), "tokenizer": tokenizer.digest}
    fingerprint = {**digests, "split": split}
    path = get_cache_path("stores", FORMAT_VERSION, *fingerprint.values())

    def fill(folder: Path) -> None:
        folder.mkdir()
        job = BuildJob(
            folder=folder,
            sources={"corpus": corpus},
            tokenizer=tokenizer,
            split=split,
            max_empty_fraction=1.0,
        )
        build(job, ProcessPool(workers=1), f"tokenizing {split}")

    for _ in range(ATTEMPTS):
        if not path.is_dir():
            create_dir_once(path, fill)
        try:
            return dataclasses.replace(open_store(path), fingerprint=fingerprint)
        except StoreDamageError as damage:
            logging.getLogger(__name__).warning("%s: rebuilding", damage)
            remove_dir(path)
    raise ConfigError(
        f"{path} is damaged again after each build: set LMX_CACHE to another disk."
    )
