"""TensorBoard gets all metrics, or the run continues without it."""

import struct
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from lmx.run.tensorboard import TensorBoardWriter

Event: Any = vars(event_pb2)["Event"]


def read_events(folder):
    """The events of the one file in a folder: size, checksum, bytes, checksum."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, events = file.read_bytes(), []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def test_numbers_lists_and_texts_become_events_after_one_that_voids_later_steps(
    tmp_path,
):
    board = TensorBoardWriter(tmp_path, 4)
    board.add(5, {"loss": 0.5, "norm": [1.0, 2.0], "sample": "ab"})
    board.close()
    _, start, *events = read_events(tmp_path)
    assert start.step == 4 and start.session_log.status == 1  # START
    assert {event.step for event in events} == {5}
    values = {event.summary.value[0].tag: event.summary.value[0] for event in events}
    sample = values.pop("sample/text_summary")
    assert sample.tensor.string_val == [b"ab"]
    numbers = {tag: value.simple_value for tag, value in values.items()}
    assert numbers == {"loss": 0.5, "norm/0": 1.0, "norm/1": 2.0}


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path, capsys):
    board = TensorBoardWriter(tmp_path / "missing", 0)
    board.add(1, {"loss": 0.5})
    board.close()
    warning = capsys.readouterr().err
    assert warning.count("nothing more is written for TensorBoard") == 1
    assert "No such file" in warning and "metrics.jsonl has all metrics" in warning


@pytest.mark.parametrize("size", [0, 30])
def test_a_full_disk_ends_the_events_and_nothing_else(
    tmp_path, capsys, full_disk, size
):
    board = TensorBoardWriter(tmp_path, 0)
    full_disk(size)
    for step in range(400):
        board.add(step, {"loss": 0.5})
    board.close()
    assert capsys.readouterr().err.count("nothing more is written") == 1
