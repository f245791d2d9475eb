"""A disk that is full."""

import resource
import signal

import pytest


@pytest.fixture
def full():
    """Files cannot grow beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield full
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)
