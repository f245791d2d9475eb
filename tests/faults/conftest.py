"""Runs that are killed at the end of their test."""

import pytest

from tests.faults.trainer import Trainer


@pytest.fixture
def trainer(tmp_path):
    trainer = Trainer(tmp_path)
    yield trainer
    trainer.end()
