"""How far a long pass over documents has come, on stderr."""

import sys
import time
from collections.abc import Generator, Iterable
from typing import Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

PATIENCE = 1.0  # seconds before a bar appears
PAUSE = 10.0  # seconds between lines where there is no terminal


@runtime_checkable
class HasText(Protocol):
    """Anything with a text."""

    @property
    def text(self) -> str: ...


Item = TypeVar("Item", bound=HasText)


def watched(documents: Iterable[Item], title: str) -> Generator[Item, None, None]:
    """The same documents, with a bar on a terminal and now and then a line elsewhere.

    A pass that takes less than a second says nothing.
    """
    terminal = sys.stderr.isatty()
    done, began = 0, time.monotonic()
    said = began
    with bytes_bar(title) as bar:
        for count, document in enumerate(documents, 1):
            yield document
            done += len(document.text)
            bar.set_postfix_str(f"{count} documents", refresh=False)
            bar.update(len(document.text))
            now = time.monotonic()
            if not terminal and now - said > PAUSE:
                said, rate = now, done / 1e6 / (now - began)
                say(f"{title}: {count} documents, {done / 1e6:.0f} MB, {rate:.1f} MB/s")


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
