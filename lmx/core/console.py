"""Progress bars and lines on stderr, and tables of text."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

BAR_DELAY = 1.0  # seconds before a bar appears
LINE_INTERVAL = 10.0  # seconds between lines without a terminal


def byte_progress(title: str, total: int | None = None) -> "tqdm":
    """A progress bar of bytes on a terminal; nothing elsewhere."""
    from tqdm import tqdm  # layers and models import without it

    return tqdm(
        desc=title,
        total=total,
        unit="B",
        unit_scale=True,
        delay=BAR_DELAY,
        disable=not sys.stderr.isatty(),
    )


def print_line(text: str) -> None:
    """Prints a line on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> str:
    """Columns under a header, the first `left` aligned left, the others right."""
    lines = [list(header), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [f"{{:{'<' if n < left else '>'}{w}}}" for n, w in enumerate(widths)]
    return "\n".join("  ".join(cells).format(*line).rstrip() for line in lines)
