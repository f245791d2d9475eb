"""JSON of other programs: an object with fields of known types, or a ConfigError."""

from collections.abc import Mapping

import pytest

from lmx.config.json_object import MAX_DEPTH, parse_object, refuse_repeated_names
from lmx.config.registry import ConfigError


def nest(depth, opening, closing):
    return f'{{"a": {opening * depth}{closing * depth}}}'.encode()


BROKEN = {
    "cut short": (b'{"a": ', "f.json is not JSON: Expecting value"),
    "no UTF-8": (b"\xff\xfe\0", "f.json is not JSON"),
    "a list": (b"[1]", "f.json must hold a JSON object"),
    "null": (b"null", "f.json must hold a JSON object"),
    "an integer of 5,000 digits": (b"9" * 5000, "f.json is not JSON: Exceeds"),
    "deep": (nest(300, "[", "]"), "more than 64 levels of nesting"),
    "deeper": (nest(10**5, "[", "]"), "f.json is not JSON: maximum recursion"),
    "deep objects": (nest(300, '{"a":', "}")[:-301] + b"1" + b"}" * 301, "64 levels"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid ", "git lfs pull"),
}


@pytest.mark.parametrize("content, message", BROKEN.values(), ids=BROKEN)
def test_what_is_no_object_is_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        parse_object(content, "f.json")


def test_fields_have_the_given_types():
    kinds = {"files": Mapping[str, str], "size": int | None}
    content = b'{"files": {"a": "b"}, "more": [1]}'
    found = parse_object(content, "f.json", kinds)
    assert found == {"files": {"a": "b"}, "more": [1]}
    for broken in (b"{}", b'{"files": {"a": 1}}', b'{"files": [["a", "b"]]}'):
        with pytest.raises(ConfigError, match="f.json: files must be Mapping"):
            parse_object(broken, "f.json", kinds)
    with pytest.raises(ConfigError, match="size must be int or None, got True"):
        parse_object(b'{"files": {}, "size": true}', "f.json", kinds)


def test_names_can_be_required_to_be_unique_and_nesting_has_a_limit():
    twice = b'{"a": {"b": 1, "b": 1}}'
    assert parse_object(twice, "f.json") == {"a": {"b": 1}}
    with pytest.raises(ConfigError, match="f.json .*'b' twice"):
        parse_object(twice, "f.json", hook=refuse_repeated_names)
    assert parse_object(nest(MAX_DEPTH - 1, "[", "]"), "f.json")
