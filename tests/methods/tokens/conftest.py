from __future__ import annotations

import pytest

from lessen.testing.colours import ColourTask


@pytest.fixture(scope="session")
def task():
    return ColourTask()


@pytest.fixture(scope="session")
def trained(task):
    model = task.reference()
    assert task.score(model, "test") > 0.8
    return model
