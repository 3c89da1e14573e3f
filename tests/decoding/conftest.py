"""Fixtures of the decoding tests; they need the extra [hf]."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("transformers") else ["test_*.py"]


@pytest.fixture(scope="session")
def model():
    from tiny_models import llama

    return llama()
