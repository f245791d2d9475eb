"""Output that cannot be written ends nothing."""

import contextlib
import os
import sys

import pytest

from lmx.core.console import print_line, protect_output, warn_on_error


@contextlib.contextmanager
def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as file:
        yield file


@contextlib.contextmanager
def full_disk():
    with open("/dev/full", "w", buffering=1) as file:
        yield file


@contextlib.contextmanager
def closed():
    with full_disk() as file:
        file.close()
        yield file


@pytest.mark.parametrize("make", [broken_pipe, full_disk, closed])
def test_lines_that_cannot_be_written_are_no_exceptions(make):
    with (
        make() as stream,
        contextlib.redirect_stderr(stream),
        contextlib.redirect_stdout(stream),
        protect_output() as output,
    ):
        print("a result")
        print_line("a line")
        sys.stderr.flush()
        output.flush()
    assert bool(output.error) == (make is not broken_pipe)


def test_a_line_of_library_code_is_no_exception_either():
    with closed() as stream, contextlib.redirect_stderr(stream):
        print_line("a line")
        with warn_on_error("plot"):
            raise KeyError("nats")


def test_characters_without_an_encoding_are_escaped(tmp_path):
    with (
        (tmp_path / "out").open("w", encoding="ascii") as stream,
        contextlib.redirect_stdout(stream),
        protect_output() as output,
    ):
        print("über \ud800")
    assert (tmp_path / "out").read_text() == "\\xfcber \\ud800\n"
    assert output.error is None


def test_an_error_passes_a_warning_about_a_picture(capsys):
    with pytest.raises(KeyError, match="the true error"):
        try:
            raise KeyError("the true error")
        finally:
            with warn_on_error("plot the run"):
                raise OSError("no space")
    assert "warning: cannot plot the run: OSError: no space" in capsys.readouterr().err
