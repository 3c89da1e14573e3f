"""Every token method keeps the public contract, on the small picture task."""

from __future__ import annotations

import pytest

from lessen.methods import builtin_methods
from lessen.testing import check_method

SHORT = {"diffrate": {"steps": 4, "polish": 6, "polish_batches": 1}, "tocom": {"steps": 3}}
NAMES = [name for name, cls in builtin_methods().items() if cls.card.family == "tokens"]
VISUAL = [name for name in NAMES if "visual tokens" in builtin_methods()[name].card.acts_on]


def test_none_is_missing():
    listed = {"deco", "diffrate", "evit", "glsim", "tocom", "token-random-drop", "token-random-merge", "tome"}
    assert listed <= set(NAMES)
    assert {"determinantal-tokens", "fastv", "feather", "random-tokens", "uniform-tokens"} <= set(VISUAL)
    assert {"adem-vl", "free-video-llm", "hires-llava", "slime"} <= set(VISUAL)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, task):
    check_method(builtin_methods()[name](**SHORT.get(name, {})), None if name in VISUAL else task)
