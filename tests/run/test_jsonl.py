"""Lines are whole, or they are not there."""

import os

import pytest

from lmx.run.jsonl import JsonlWriter, read_jsonl


@pytest.fixture
def journal(tmp_path):
    journal = JsonlWriter(tmp_path / "a.jsonl")
    yield journal
    journal.close()


def test_what_is_added_is_read(journal):
    assert read_jsonl(journal.path) == []
    rows = [{"step": 1, "loss": 0.1}, {"step": 2, "text": "a\nb \u2028 ü"}]
    for row in rows:
        journal.append(row)
    assert read_jsonl(journal.path) == rows
    assert journal.size == journal.path.stat().st_size


def test_a_line_torn_by_a_kill_is_not_there_and_the_next_is_whole(journal):
    journal.path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_jsonl(journal.path) == [{"step": 1}]
    journal.append({"step": 3})
    assert read_jsonl(journal.path) == [{"step": 1}, {"step": 3}]


def test_on_a_full_disk_lines_are_held_whole_and_written_once_there_is_room(
    journal, full
):
    journal.append({"step": 1})
    full(journal.path.stat().st_size + 5)  # room for a part of a line
    for step in (2, 3):
        with pytest.raises(OSError):
            journal.append({"step": step})
    assert read_jsonl(journal.path) == [{"step": 1}]
    assert journal.path.read_bytes().endswith(b"\n")
    full(10_000)
    journal.append({"step": 4})
    assert [row["step"] for row in read_jsonl(journal.path)] == [1, 2, 3, 4]


def test_a_cut_leaves_what_is_kept_of_the_first_bytes(journal):
    for step in range(5):
        journal.append({"step": step})
    journal.close()
    size = os.path.getsize(journal.path) * 3 // 5
    journal.truncate(lambda row: row["step"] != 1, size)
    assert [row["step"] for row in read_jsonl(journal.path)] == [0, 2]
