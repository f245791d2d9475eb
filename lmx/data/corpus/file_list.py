"""Which files a corpus has, and in which parts they are read."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import Span


def list_files(
    path: str, suffixes: tuple[str, ...], owner: str, single_name: str
) -> Iterator[tuple[Path, str]]:
    """The files below a folder that end so, in order, and what each is called there.

    Hidden files and folders are passed over. A path that is a file is listed, whatever
    it ends in, and called `single_name`. `owner` is the class that has `suffixes`.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise ConfigError(f"there is no {root}{_suggest_path(root)}")
    if root.is_file():
        yield root, single_name
        return
    found = False
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.name.endswith(suffixes) and file.is_file() and not hidden:
            found = True
            yield file, name.as_posix()
    if not found:
        raise ConfigError(
            f"no file of {root} ends in {' or '.join(suffixes)}: set {owner}.suffixes"
            " to what its files end in."
        )


def divide_file(
    name: str, count: int, bytes: int, size: int, stamp: str
) -> Iterator[Span]:
    """`count` things of a file, so many bytes in all, in parts of about `size`."""
    pieces = max(1, min(count, round(bytes / size)))
    for piece in range(pieces):
        begin, end = (count * n // pieces for n in (piece, piece + 1))
        yield Span(name, begin, end, bytes // pieces, stamp)


def read_stamp(path: Path) -> str:
    """What changes when the file is written again."""
    found = path.stat()
    return f"{found.st_size} bytes of {found.st_mtime_ns}"


def _suggest_path(path: Path) -> str:
    """What exists and has nearly that name, for a message."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {folder}"
    names = [entry.name for entry in folder.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / near[0]}?" if near else ""
