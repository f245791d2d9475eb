"""How far a long pass over documents has come, on stderr."""

import sys

from tqdm import tqdm

BAR_DELAY = 1.0  # seconds before a bar appears
LINE_INTERVAL = 10.0  # seconds between lines where there is no terminal


def byte_progress(title: str, total: int | None = None) -> tqdm:
    """A bar of bytes on a terminal, and nothing elsewhere."""
    return tqdm(
        desc=title,
        total=total,
        unit="B",
        unit_scale=True,
        delay=BAR_DELAY,
        disable=not sys.stderr.isatty(),
    )


def print_line(text: str) -> None:
    """One plain line on stderr, beside any bar."""
    tqdm.write(text, file=sys.stderr)
