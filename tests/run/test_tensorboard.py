"""TensorBoard gets what metrics get, or the run goes on without it."""

import struct
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from lmx.run.tensorboard import TensorBoardWriter

Event: Any = vars(event_pb2)["Event"]


def events(folder):
    """The events of the one file in a folder: length, its check, bytes, their check."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_numbers_lists_and_texts_are_events_after_the_step_that_voids_later_ones(
    tmp_path,
):
    board = TensorBoardWriter(tmp_path, 4)
    board.add(5, {"loss": 0.5, "norm": [1.0, 2.0], "sample": "ab"})
    board.close()
    _, start, *found = events(tmp_path)
    assert start.step == 4 and start.session_log.status == 1  # START
    assert {event.step for event in found} == {5}
    told = {event.summary.value[0].tag: event.summary.value[0] for event in found}
    numbers = {
        tag: value.simple_value for tag, value in told.items() if "/t" not in tag
    }
    assert numbers == {"loss": 0.5, "norm/0": 1.0, "norm/1": 2.0}
    assert told["sample/text_summary"].tensor.string_val == [b"ab"]


def test_where_it_cannot_be_written_that_is_said_once(tmp_path, capsys):
    board = TensorBoardWriter(tmp_path / "gone", 0)
    board.add(1, {"loss": 0.5})
    board.close()
    said = capsys.readouterr().err
    assert said.count("no more is written for TensorBoard") == 1
    assert "No such file" in said and "metrics.jsonl has it all" in said


@pytest.mark.parametrize("room", [0, 30])
def test_a_disk_that_is_full_ends_the_events_and_nothing_else(
    tmp_path, capsys, full, room
):
    board = TensorBoardWriter(tmp_path, 0)
    full(room)
    for step in range(400):
        board.add(step, {"loss": 0.5})
    board.close()
    assert capsys.readouterr().err.count("no more is written") == 1
