"""Writes TensorBoard event files; a run continues without them if that fails."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from lmx.core.console import print_line

_PROTO: Any = event_pb2  # its classes are created at import


class TensorBoardWriter:
    """One event file of a run. In older files values from `step` on are ignored."""

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        self.writer: RecordWriter | None = None
        name = f"events.out.tfevents.{time.time():.0f}.{os.uname().nodename}"
        with self._disable_on_error():
            self.writer = RecordWriter(f"{folder / name}.{os.getpid()}")
            self._write_event(0, file_version="brain.Event:2")
            start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
            self._write_event(step, session_log=start)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds numbers, lists of numbers, and texts."""
        with self._disable_on_error():
            for item in _make_summaries(values):
                self._write_event(step, summary=item)
            if self.writer:
                self.writer.flush()

    def close(self) -> None:
        with self._disable_on_error():
            if self.writer:
                self.writer.close()
                self.writer = None

    def _write_event(self, step: int, **fields: Any) -> None:
        if self.writer:
            event = _PROTO.Event(wall_time=time.time(), step=step, **fields)
            self.writer.write(event.SerializeToString())

    @contextlib.contextmanager
    def _disable_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print_line(
                f"warning: nothing more is written for TensorBoard to {self.folder}"
                f" ({error.strerror}); {self.folder / 'metrics.jsonl'} has all metrics"
            )
            writer, self.writer = self.writer, None
            if writer:
                with contextlib.suppress(OSError):
                    writer.close()


def _make_summaries(values: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in values.items():
        if isinstance(value, list):
            yield from _make_summaries({f"{name}/{n}": x for n, x in enumerate(value)})
        else:
            make = summary.text if isinstance(value, str) else summary.scalar
            yield make(name, value)
