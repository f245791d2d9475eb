"""One letter, one meaning."""

import re

from lmx.core import dims


def test_every_letter_is_explained_and_every_explanation_has_its_letter():
    explained = re.findall(r"(?:^ {4}| {2})([A-Z])  ", str(dims.__doc__), re.MULTILINE)
    assert sorted(explained) == sorted(dims.LOGICAL)


def test_no_two_letters_share_a_name():
    assert len(set(dims.LOGICAL.values())) == len(dims.LOGICAL)


def test_letters_spell_axes_in_order():
    assert dims.logical("DNH") == ("embed", "heads", "head_dim")
    assert dims.logical("") == ()
