"""The tiny experiment of `tests/train`."""

from tests.train.conftest import tiny as tiny
