from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("zstandard", reason="the [checkpoints] extra is not installed")
pytest.importorskip("constriction", reason="the [checkpoints] extra is not installed")

from checkpoint_runs import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> list[Path]:
    """Five checkpoints of one small run with Adam."""
    return make_run(tmp_path_factory.mktemp("run"))
