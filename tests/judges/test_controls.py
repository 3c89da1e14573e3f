"""Every suite has a control: it catches the planted fault and is silent at a harmless change."""

from __future__ import annotations

import pytest

from benchmarks.judges.controls import CONTROLS
from lessen.judges import suites


@pytest.mark.parametrize("name", CONTROLS)
def test_the_planted_fault_is_caught_and_the_null_is_silent(name):
    fault, null = CONTROLS[name](0)
    assert fault.caught
    assert not null.caught
    assert fault.name == name


def test_no_suite_is_without_a_control():
    assert set(CONTROLS) == set(suites())
