from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import ColourTask


@pytest.fixture(scope="session")
def task():
    return ColourTask()


@pytest.fixture(scope="session")
def trained(task):
    model = task.reference()
    assert task.score(model, "test") > 0.8
    return model
