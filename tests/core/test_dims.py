"""One letter, one meaning."""

import re

from lmx.core import dims


def test_every_letter_is_documented_and_every_documented_letter_exists():
    explained = re.findall(r"(?:^ {4}| {2})([A-Z])  ", str(dims.__doc__), re.MULTILINE)
    assert sorted(explained) == sorted(dims.LOGICAL)


def test_no_two_letters_share_a_name():
    assert len(set(dims.LOGICAL.values())) == len(dims.LOGICAL)


def test_letters_map_to_axes_in_order():
    assert dims.logical("DNH") == ("embed", "heads", "head_dim")
    assert dims.logical("") == ()
