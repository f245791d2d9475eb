"""Token stores of corpora named in experiments: built once, kept in the cache."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

from lmx.config.registry import ConfigError
from lmx.core.files import create_dir_once, get_cache_dir, remove_dir
from lmx.data.corpus.corpus import Corpus, Split
from lmx.data.store.build import build
from lmx.data.store.executor import ProcessPool
from lmx.data.store.shard_plan import BuildJob
from lmx.data.store.store import FORMAT_VERSION, Store, StoreDamageError, open_store
from lmx.data.tokenizer.base import Tokenizer

ATTEMPTS = 3  # another process may remove what this one has just built


def open_cached_store(corpus: Corpus, tokenizer: Tokenizer, split: Split) -> Store:
    """Opens the tokens of a split; builds them if they are missing or damaged."""
    digests = {"corpus": corpus.compute_digest(), "tokenizer": tokenizer.digest}
    fingerprint = {**digests, "split": split}
    key = json.dumps([FORMAT_VERSION, *fingerprint.values()]).encode()
    path = get_cache_dir("stores") / hashlib.sha256(key).hexdigest()[:32]

    def fill(folder: Path) -> None:
        folder.mkdir()
        job = BuildJob(
            folder=folder, sources={"corpus": corpus}, tokenizer=tokenizer, split=split
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
