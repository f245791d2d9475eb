"""How far a long pass over documents has come, on stderr."""

import sys

from tqdm import tqdm

PATIENCE = 1.0  # seconds before a bar appears
PAUSE = 10.0  # seconds between lines where there is no terminal


def bytes_bar(title: str, total: int | None = None) -> tqdm:
    """A bar of bytes on a terminal, and nothing elsewhere."""
    return tqdm(
        desc=title,
        total=total,
        unit="B",
        unit_scale=True,
        delay=PATIENCE,
        disable=not sys.stderr.isatty(),
    )


def say(line: str) -> None:
    """One plain line on stderr, beside any bar."""
    tqdm.write(line, file=sys.stderr)
