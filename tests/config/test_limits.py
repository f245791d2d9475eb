"""Limits of a config: what is larger is refused within a second."""

import os
import time

import pytest

from lmx.config.gin import MAX_BYTES, MAX_INCLUDES
from lmx.config.registry import ConfigError, import_all
from lmx.config.resolve import from_json, load
from tests.config.test_build import Cart

DOUBLING = "".join(f"m{n} = [%m{n + 1}, %m{n + 1}]\n" for n in range(60))


@pytest.fixture(scope="module", autouse=True)
def all_modules():
    """Imports what an error may list: that takes seconds, once in a process."""
    import_all()


@pytest.fixture
def read(tmp_path):
    """Loads a text as a config, in a folder with other files."""

    def read(text, **files):
        for name, content in {"a": text, **files}.items():
            content = f"{content}\nWheel.spokes = 2\n"
            (tmp_path / f"{name}.gin").write_text(content)
        start = time.process_time()
        try:
            return load([tmp_path / "a.gin"], root=Cart)
        finally:
            assert time.process_time() - start < 5.0

    return read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{DOUBLING}m60 = 1\nCart.load = %m0", "over 10,000 values"),
        ("# " + "x" * MAX_BYTES, f"at most {MAX_BYTES:,} bytes"),
        ("include 'a.gin'", "makes a cycle"),
        ("Cart.load = " + "[" * 300 + "]" * 300, "must be|nesting|too deeply"),
        ("Cart.load = " + "[" * 5000 + "]" * 5000, "a.gin:1: .*(recursion|too deeply)"),
        ("Cart.load = " + "{1: " * 300 + "1" + "}" * 300, "must be|nesting|too deeply"),
        ("Cart.load = " + "9" * 5000, "a.gin:1: 9{80} is not a value"),
        ("Wheel.pairs = " + "9" * 4000, r"pairs is 0x\w+: it must be from -2\^63 to"),
        ("Wheel.pairs = 0x" + "f" * 5000, r"pairs is 0xf+: it must be from -2\^63 to"),
        ("Axle.length = " + "9" * 4000, "Axle.length must be float, got 0x"),
        ("include 'b\\0.gin'", "is no name of a file"),
        (f"include '{'b' * 300}.gin'", "too long"),
    ],
)
def test_a_config_beyond_a_limit_is_refused(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_includes_have_a_limit_in_depth_and_in_number(read):
    def chain(count, times):
        files = {f"f{n}": f"include 'f{n + 1}.gin'\n" * times for n in range(count)}
        return {**files, f"f{count}": "Axle.length = 3"}

    depth = MAX_INCLUDES - 1
    assert read("include 'f0.gin'", **chain(depth, 1))["axles.1.length"] == 3
    with pytest.raises(ConfigError, match="at most 20 levels deep"):
        read("include 'f0.gin'", **chain(depth + 1, 1))
    with pytest.raises(ConfigError, match=f"at most {MAX_BYTES:,} bytes"):
        read("include 'f0.gin'", **chain(depth, 2))


@pytest.mark.parametrize("make", [os.mkfifo, lambda at: os.symlink("/dev/zero", at)])
def test_an_include_is_a_regular_file(read, tmp_path, make):
    make(tmp_path / "b.gin")
    with pytest.raises(ConfigError, match="a.gin:1: .*b.gin is no regular file"):
        read("include 'b.gin'")


def test_a_symlink_loop_is_refused(read, tmp_path):
    os.symlink("b.gin", tmp_path / "b.gin")
    with pytest.raises(ConfigError, match=r"a.gin:1: .*(levels of symbolic|no file)"):
        read("include 'b.gin'")


@pytest.mark.parametrize(
    "text", ['{"=map": 5}', '{"@Cart()": 5}', '{"@Cart()": {"a": {"=float": []}}}']
)
def test_json_of_wrong_kinds_is_refused(text):
    with pytest.raises(ConfigError, match="r.json.*(is not|starts with)"):
        from_json(text, "r.json")
