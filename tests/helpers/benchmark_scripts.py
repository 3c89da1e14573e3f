"""Loads a script of benchmarks/ as a module, or skips where benchmarks are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a script as a module; its neighbours can be imported by it while the test runs."""
    path = BENCHMARKS / f"{name}.py"
    if not path.exists():
        pytest.skip("benchmarks are not part of this installation")
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(f"script_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
