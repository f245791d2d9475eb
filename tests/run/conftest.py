"""The tiny experiment, and a full disk."""

import resource
import signal

import pytest

from tests.train.conftest import tiny as tiny


@pytest.fixture
def full_disk():
    """Limits the size of files, so that writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full_disk(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield full_disk
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
