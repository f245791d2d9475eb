"""Which files a corpus has, and in which parts they are read."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from lmx.config.names import ConfigError
from lmx.data.corpora.corpus import Span


def listed(
    path: str, suffixes: tuple[str, ...], owner: str, one: str
) -> Iterator[tuple[Path, str]]:
    """The files below a folder that end so, in order, and what each is called there.

    Hidden files and folders are passed over. A path that is a file is listed, whatever
    it ends in, and called `one`. `owner` is the class that has `suffixes`.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise ConfigError(f"there is no {root}{_near(root)}")
    if root.is_file():
        yield root, one
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


def parts(name: str, count: int, bytes: int, size: int, stamp: str) -> Iterator[Span]:
    """`count` things of a file, so many bytes in all, in parts of about `size`."""
    pieces = max(1, min(count, round(bytes / size)))
    for piece in range(pieces):
        begin, end = (count * n // pieces for n in (piece, piece + 1))
        yield Span(name, begin, end, bytes // pieces, stamp)


def stamp(path: Path) -> str:
    """What changes when the file is written again."""
    found = path.stat()
    return f"{found.st_size} bytes of {found.st_mtime_ns}"


def _near(path: Path) -> str:
    """What exists and has nearly that name, for a message."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {folder}"
    names = [entry.name for entry in folder.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / near[0]}?" if near else ""
