"""The tiny experiment of `tests/train`, and attempts of a run that never ran."""

from pathlib import Path

import pytest

from lmx.faulttest.process_group import RunAttempt, Topology
from tests.train.conftest import tiny as tiny


@pytest.fixture(scope="session")
def attempt():
    """An attempt with these events, one list for each process."""

    def attempt(*traces):
        return RunAttempt(
            run=Path("run"),
            topology=Topology(len(traces)),
            kill_point=None,
            command=[],
            statuses=[0],
            traces=[list(trace) for trace in traces],
            metrics=[],
            started=0.0,
            ended=1.0,
        )

    return attempt
