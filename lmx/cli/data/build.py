"""`lmx data build`: builds a token store from corpora."""

import argparse
import time
from pathlib import Path

from lmx.cli.command import Command, Output
from lmx.cli.load import load_root
from lmx.config.value import explain_errors

_ABOUT = """\
Builds a token store in the folder OUT from the sources, filters and tokenizer of a
config with the root @BuildTokenStore. A config can be as short as this:

  BuildTokenStore:
    sources = {'books': @books/Text(), 'web': @Parquet()}
    tokenizer = @ByteTokenizer()
    filters = [@LengthFilter()]
  books/Text.path = 'texts'            # a folder, a file, .jsonl or .jsonl.zst
  Parquet.path = 'web'                 # or ArrayRecord, HuggingFaceDataset
  LengthFilter.min_chars = 200

It runs one process per core. After a kill, Ctrl-C or a power failure, the same command
resumes and produces the same bytes as an uninterrupted build. A finished store can be
extended: new files of a source and new sources are added, and files that it already has
are not read again. Invalid or empty documents are an error, or are counted and skipped
up to the limits BuildTokenStore.max_invalid_fraction and max_empty_fraction.

  lmx data build books.gin stores/books
  lmx data build books.gin stores/books-val BuildTokenStore.split=validation
  lmx data build books.gin stores/books ProcessPool.workers=8
  lmx data build books.gin stores/books 'BuildTokenStore.executor=@RayExecutor()'
"""


def _build(args: argparse.Namespace) -> Output:
    from lmx.data.store.build import BuildTokenStore
    from lmx.data.store.stats import format_excluded
    from lmx.data.store.store import read_manifest

    config, folder = load_root(args, BuildTokenStore), Path(args.names[1])
    started = time.monotonic()
    with explain_errors(config):
        store = config.build().write(folder)
    manifest = read_manifest(folder)
    data = {
        "store": f"{folder}",
        **{name: manifest[name] for name in ("documents", "tokens", "bytes")},
        "shards": len(manifest["shards"]),
        "excluded": manifest["excluded"],
        "fingerprint": dict(store.fingerprint),
        "seconds": time.monotonic() - started,
    }
    size = (
        f"{folder}: {data['documents']:,} documents, {data['tokens']:,} tokens of"
        f" {data['bytes'] / 1e6:,.1f} MB of text, {data['shards']} shards,"
        f" {data['seconds']:.0f} s"
    )
    return Output("\n".join((size, *format_excluded(data["excluded"]))), data)


COMMANDS = (
    Command(
        "data build",
        "CONFIG.gin OUT",
        "a token store from corpora",
        _ABOUT,
        _build,
        takes_overrides=True,
        hint="the same command resumes: {1}",
    ),
)
