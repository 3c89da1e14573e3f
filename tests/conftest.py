"""Shared fixtures: a toy task, threads pinned so that numbers repeat."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from breaking_files import Unsynced
from lessen import files
from toy import ToyTask


@pytest.fixture(autouse=True)
def _pinned():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _unsynced():
    """Tests of faults put their own layers over it, which do sync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FILES", Unsynced())
        yield


@pytest.fixture
def toy() -> ToyTask:
    return ToyTask()
