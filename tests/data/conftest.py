"""The log that several tests of encoding read."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_log import rows, write_csv


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "log.csv", rows())
