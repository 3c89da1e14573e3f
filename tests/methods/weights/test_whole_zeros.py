"""Grids with whole zero points: the offset is exact, the range covered, and three containers can say the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lessen.export.codes import Coded
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.methods.weights.rtn import RTN


@given(
    bits=st.sampled_from([2, 3, 4, 5, 6]), power=st.integers(-12, 12), shift=st.floats(-3, 3), seed=st.integers(0, 99)
)
def test_zero_points_are_whole_and_nothing_is_further_than_half_a_step(bits, power, shift, seed):
    weight = (torch.randn(4, 96, generator=torch.Generator().manual_seed(seed)) + shift) * 2.0**power
    grid = fit_grid(weight, bits, 64, False, "minmax", "whole")
    coded = Coded(quantise(weight, grid), grid)
    zeros = coded.zeros
    assert zeros is not None
    assert 0 <= int(zeros.min()) <= int(zeros.max()) <= 2**bits - 1
    steps = coded.spread(grid.scales.float(), 1)
    assert torch.equal((coded.codes.float() - coded.spread(zeros, 1)) * steps, coded.values())
    assert bool(((coded.values() - weight).abs() <= 0.5001 * steps).all())


@pytest.mark.parametrize("ranges", ["minmax", "search"])
def test_short_scales_cost_little(ranges):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    free, whole = (fit_grid(weight, 4, 64, False, ranges, zeros) for zeros in ("free", "whole"))
    error = [float((grid.values(quantise(weight, grid)) - weight).square().mean()) for grid in (free, whole)]
    assert error[1] < 1.05 * error[0]


def test_eight_bits_need_symmetry():
    with pytest.raises(ValidationError, match="set symmetric=true"):
        RTN(bits=8, zeros="whole")
    assert RTN(bits=8, zeros="whole", symmetric=True).zeros == "whole"
