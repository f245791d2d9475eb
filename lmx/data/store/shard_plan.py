"""What is to be done for a store: which pieces of which sources, and what is done."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Corpus, Span
from lmx.data.store.shard_writer import (
    BuildJob,
    ShardSpec,
    get_lengths_path,
    get_record_path,
)
from lmx.data.store.store import (
    MANIFEST_FILE,
    SHARDS_FILE,
    format_shard_name,
    read_manifest,
)

PLAN_FILE = "plan.json"
UsedSpans = Mapping[str, Mapping[str, Sequence[list]]]  # source, file: its spans


def plan_shards(
    sources: Mapping[str, Corpus], size: int, first: int, taken: UsedSpans
) -> list[ShardSpec]:
    """What is not taken of the sources, in pieces of about `size` bytes of text.

    They are numbered from `first` on.
    """
    found: list[ShardSpec] = []
    for name, corpus in sources.items():
        group: list[Span] = []
        for span in _find_new_spans(name, corpus.list_spans(size), taken.get(name, {})):
            if group and sum(s.bytes for s in group) + span.bytes > size:
                found.append(ShardSpec(first + len(found), name, tuple(group)))
                group = []
            group.append(span)
        if group:
            found.append(ShardSpec(first + len(found), name, tuple(group)))
    return found


def _find_new_spans(
    name: str, spans: Sequence[Span], taken: Mapping[str, Sequence[list]]
) -> Iterator[Span]:
    """The spans of files that are not in the store. One that changed is refused."""
    there: dict[str, list[list]] = {}
    for span in spans:
        there.setdefault(span.file, []).append(list(span[:-1]))
    for file, old in taken.items():
        if file in there and there[file] != old:
            raise ConfigError(
                f"{file!r} of source {name!r} is in the store and has changed since:"
                " what was appended to it cannot be told from what was there. Put new"
                " text into new files, or build another store."
            )
    return (span for span in spans if span.file not in taken)


def read_used_spans(folder: Path) -> dict[str, dict[str, list[list]]]:
    """What the finished store in the folder was made of; nothing where none is."""
    found: dict[str, dict[str, list[list]]] = {}
    for record in read_records(folder):
        files = found.setdefault(record["source"], {})
        for span in record["spans"]:
            files.setdefault(span[0], []).append(span)
    return found


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Of each shard of the finished store, what is known of it."""
    if not (folder / MANIFEST_FILE).is_file():
        return []
    shards = len(read_manifest(folder)["shards"])
    with (folder / SHARDS_FILE).open() as lines:
        return [json.loads(next(lines)) for _ in range(shards)]


def is_finished(job: BuildJob, piece: ShardSpec) -> bool:
    """Whether the shard of the piece is there, whole."""
    path = get_record_path(job, piece.number)
    if not path.is_file() or not get_lengths_path(job, piece.number).is_file():
        return False
    tokens = job.folder / format_shard_name(piece.number)
    wanted = json.loads(path.read_text())["digest"]["bytes"]
    return tokens.is_file() and tokens.stat().st_size == wanted


def check_plan(
    recipe: Mapping[str, Any],
    todo: Sequence[ShardSpec],
    old: Mapping[str, Any],
    work: Path,
) -> None:
    """Refuses to go on with what was begun as something else."""
    check_recipe(recipe, old["recipe"], work.parent)
    for piece, other in zip(todo, old["pieces"], strict=False):
        new = json.loads(json.dumps(piece))
        if new == other:
            continue
        files = [span[0] for span in new[2] if span not in other[2]]
        raise ConfigError(
            f"{work.parent}: source {piece.source!r} has changed since this build"
            f" began, at {files[0] if files else other[2][-1][0]!r}: bring back what"
            f" there was, or delete {work} to begin again."
        )
    if len(todo) != len(old["pieces"]):
        raise ConfigError(
            f"{work.parent}: there are {len(todo)} pieces of input, and were"
            f" {len(old['pieces'])} when this build began: bring back what there was,"
            f" or delete {work} to begin again."
        )


def check_recipe(new: Mapping[str, Any], old: Mapping[str, Any], folder: Path) -> None:
    """Refuses to mix what was made by two recipes."""
    for name, value in new.items():
        if old[name] != value:
            raise ConfigError(
                f"{folder} was begun with another {name}, {_truncate(old[name])}, and this"
                f" is {_truncate(value)}: build into another folder, or with what it was"
                " begun with."
            )


def check_sources(new: Mapping[str, str], old: Mapping[str, str], folder: Path) -> None:
    """Refuses a source that is read otherwise than when it was put into the store."""
    for name in new.keys() & old.keys():
        if new[name] != old[name]:
            raise ConfigError(
                f"{folder} has source {name!r} as {old[name]}, and this is {new[name]}:"
                " give it a name of its own."
            )


def _truncate(value: Any) -> str:
    text = f"{value}"
    return text if len(text) <= 80 else f"{text[:60]}..."
