"""Lines of a JSON Lines file are complete or absent."""

import os

import pytest

from lmx.run.jsonl import JsonlWriter, read_jsonl


@pytest.fixture
def writer(tmp_path):
    writer = JsonlWriter(tmp_path / "a.jsonl")
    yield writer
    writer.close()


def test_appended_rows_are_read_back(writer):
    assert read_jsonl(writer.path) == []
    rows = [{"step": 1, "loss": 0.1}, {"step": 2, "text": "a\nb \u2028 ü"}]
    for row in rows:
        writer.append(row)
    assert read_jsonl(writer.path) == rows
    assert writer.size == writer.path.stat().st_size


def test_a_partial_line_is_ignored_and_removed_by_the_next_append(writer):
    writer.path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_jsonl(writer.path) == [{"step": 1}]
    writer.append({"step": 3})
    assert read_jsonl(writer.path) == [{"step": 1}, {"step": 3}]


def test_on_a_full_disk_lines_stay_pending_and_are_written_once(writer, full_disk):
    writer.append({"step": 1})
    full_disk(writer.path.stat().st_size + 5)  # less than a line
    for step in (2, 3):
        with pytest.raises(OSError):
            writer.append({"step": step})
    assert read_jsonl(writer.path) == [{"step": 1}]
    assert writer.path.read_bytes().endswith(b"\n")
    full_disk(10_000)
    writer.append({"step": 4})
    assert [row["step"] for row in read_jsonl(writer.path)] == [1, 2, 3, 4]


def test_truncate_keeps_the_chosen_lines_of_the_first_bytes(writer):
    for step in range(5):
        writer.append({"step": step})
    writer.close()
    size = os.path.getsize(writer.path) * 3 // 5
    writer.truncate(lambda row: row["step"] != 1, size)
    assert [row["step"] for row in read_jsonl(writer.path)] == [0, 2]


@pytest.mark.parametrize(
    "line", [b"\0" * 20, b'{"step": 2,,}', b"\xff\xfe{", b"7", b""]
)
def test_a_damaged_line_is_left_out_and_set_aside(writer, line, capsys):
    content = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    writer.path.write_bytes(content)
    for _ in range(2):
        assert [row["step"] for row in read_jsonl(writer.path)] == [1, 3]
    assert capsys.readouterr().err.count("1 damaged lines, which are left out") == 1
    assert writer.path.read_bytes() == content
    writer.truncate(lambda row: True)
    moved = writer.path.with_name("a.jsonl.damaged")
    assert f"1 damaged lines are moved to {moved}" in capsys.readouterr().err
    assert moved.read_bytes() == line + b"\n"
    assert writer.path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
