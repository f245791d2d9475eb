"""What is told of a text, whatever tokens it comes in."""

import pytest

from lmx.config.registry import ConfigError
from lmx.data.tokenizer.base import ByteTokenizer
from lmx.infer.stop_strings import StopStringFilter


def told(text, stops):
    """What is told of each byte, and at the end."""
    telling = StopStringFilter(ByteTokenizer(), stops)
    return [telling(byte) for byte in text.encode()], telling.flush(), telling.stopped


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
def test_a_text_is_told_up_to_the_stop_that_is_complete_first(text, stops):
    """Against looking at every beginning of the whole text."""
    wanted = text
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            wanted = text[: min(found)]
            break
    pieces, rest, over = told(text, stops)
    assert "".join(pieces) + rest == wanted
    assert over == any(stop in text for stop in stops)


def test_what_cannot_begin_a_stop_is_told_at_once():
    pieces, rest, _ = told("xaya", ["ab"])
    assert (pieces, rest) == (["x", "", "ay", ""], "a")


def test_nothing_is_told_once_it_is_over():
    pieces, rest, over = told("a.b.c", ["."])
    assert (pieces, rest, over) == (["a", "", "", "", ""], "", True)


def test_a_character_cut_short_is_told_at_the_end():
    telling = StopStringFilter(ByteTokenizer(), ["x"])
    assert telling(0xC3) == "" and telling.flush() == "\ufffd"


def test_a_stop_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="must have a character or more"):
        StopStringFilter(ByteTokenizer(), ["a", ""])
