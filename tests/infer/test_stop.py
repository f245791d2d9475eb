"""Text is returned up to the first stop string, for any split into tokens."""

import pytest

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import ByteTokenizer
from lmx.infer.stop import StopStringFilter


def feed(text, stops):
    """The text returned after each byte, and at the end."""
    stream = StopStringFilter(ByteTokenizer(), stops)
    return [stream(byte) for byte in text.encode()], stream.flush(), stream.stopped


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("one two three", ["two"]),
        ("aaab", ["aab"]),
        ("ababac", ["abac"]),
        ("né é", ["é é", "x"]),
        ("abcd", ["cd", "bc"]),
        ("abc", ["b", "abc"]),
        ("no stop", ["stopped", "!"]),
        ("no stops", []),
        ("\n\n", ["\n\n"]),
    ],
)
def test_text_is_returned_up_to_the_first_complete_stop_string(text, stops):
    """Against looking at every beginning of the whole text."""
    expected = text
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    pieces, rest, stopped = feed(text, stops)
    assert "".join(pieces) + rest == expected
    assert stopped == any(stop in text for stop in stops)


def test_text_that_cannot_start_a_stop_string_is_returned_at_once():
    pieces, rest, _ = feed("xaya", ["ab"])
    assert (pieces, rest) == (["x", "", "ay", ""], "a")


def test_nothing_is_returned_after_a_stop_string():
    pieces, rest, stopped = feed("a.b.c", ["."])
    assert (pieces, rest, stopped) == (["a", "", "", "", ""], "", True)


def test_an_incomplete_character_is_returned_at_the_end():
    stream = StopStringFilter(ByteTokenizer(), ["x"])
    assert stream(0xC3) == "" and stream.flush() == "\ufffd"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ConfigError, match="must have at least one character"):
        StopStringFilter(ByteTokenizer(), ["a", ""])
