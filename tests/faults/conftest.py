"""Real runs that tests disturb, ended with their test."""

import pytest

from tests.faults.trainer import Trainer


@pytest.fixture
def trainer(tmp_path):
    trainer = Trainer(tmp_path)
    yield trainer
    trainer.end()
