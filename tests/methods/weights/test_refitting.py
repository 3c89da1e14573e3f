"""Grids fitted to their codes: against a dense least-squares solver, and never worse than what they start from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from host_models import host
from host_words import Words
from lessen.method import Context
from lessen.methods.weights._shared.error_feedback import feedback, round_with_feedback
from lessen.methods.weights._shared.grids import fit_grid
from lessen.methods.weights._shared.refitting import RIDGE, fitted, rounds
from lessen.methods.weights.gptq import GPTQ
from lessen.recipe import Recipe


def problem(outputs=6, width=80, rows=300, seed=0):
    torch.manual_seed(seed)
    data = torch.randn(rows, width) @ torch.randn(width, width) + torch.randn(width)
    return torch.randn(outputs, width), data.t() @ data / rows


def error(weight, values, spread):
    damped = spread.curvature.double() + spread.damping * torch.eye(len(spread.curvature), dtype=torch.float64)
    change = (values - weight).double()
    return ((change @ damped) * change).sum(1)


def by_columns(weight, codes, grid, spread):
    """Return the best values of a row for its codes, with a design matrix written out and the same pull to the grid."""
    damped = spread.curvature.double() + spread.damping * torch.eye(len(spread.curvature), dtype=torch.float64)
    groups = torch.arange(weight.shape[1]) // grid.group
    found = []
    for row, code in zip(weight.double(), codes.double(), strict=True):
        level = code - (0 if grid.minimums is not None else 2 ** (grid.bits - 1))
        design = [torch.where(groups == g, level, 0.0) for g in range(int(groups.max()) + 1)]
        if grid.minimums is not None:
            design += [(groups == g).double() for g in range(int(groups.max()) + 1)]
        design = torch.stack(design)
        start = grid.values(code.to(torch.uint8)[None].expand(len(weight), -1))[len(found)].double()
        system = design @ damped @ design.t()
        system += RIDGE * torch.diag(system.diagonal())
        found.append(start + torch.linalg.solve(system, design @ damped @ (row - start)) @ design)
    return torch.stack(found)


@pytest.mark.parametrize("group", [80, 32])  # 32: the last group is shorter
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_and_minimums_are_those_of_least_squares(symmetric, group):
    weight, curvature = problem()
    spread = feedback(curvature, 0.1, True)
    grid = fit_grid(weight, 3, group, symmetric, "minmax")
    codes = round_with_feedback(weight, grid, spread)
    made = fitted(weight, codes, grid, spread).values(codes)
    assert torch.allclose(made.double(), by_columns(weight, codes, grid, spread), atol=3e-3)  # fp16 scales
    assert (error(weight, made, spread) < error(weight, grid.values(codes), spread)).all()


def test_more_rounds_never_err_more_and_none_is_plain_gptq():
    weight, curvature = problem(outputs=24)
    spread = feedback(curvature, 0.01, True)
    grid = fit_grid(weight, 2, 40, False, "minmax")
    found = [rounds(weight, grid, spread, count) for count in (0, 1, 2, 4)]
    assert torch.equal(found[0].codes, round_with_feedback(weight, grid, spread))
    assert torch.equal(found[0].grid.scales, grid.scales)
    for one, other in pairwise(found):
        assert (other.error <= one.error).all()
    assert found[-1].error.sum() < 0.95 * found[0].error.sum()
    last = found[-1]
    assert torch.allclose(last.error.double(), error(weight, last.grid.values(last.codes), spread), rtol=1e-4)


def test_rows_without_weights_or_curvature_stay_exact_and_finite():
    weight = torch.zeros(3, 64)
    weight[1] = torch.randn(64)
    spread = feedback(torch.zeros(64, 64), 0.1, True)
    grid = fit_grid(weight, 3, 32, False, "minmax")
    made = rounds(weight, grid, spread, 2)
    values = made.grid.values(made.codes)
    assert torch.isfinite(values).all()
    assert torch.equal(values[0], torch.zeros(64))


@pytest.mark.parametrize("hessian", ["input", "output", "tokens"])
def test_a_host_errs_less_under_its_own_curvature(hessian):
    task, model = Words("llama"), host("llama")
    ends = []
    for refit in (0, 2):
        context = Context()
        step = {"bits": 2, "group": 32, "hessian": hessian, "refit": refit, "min_weights": 1, "table_bits": None}
        GPTQ(**step).apply(Recipe([]).apply(model, task)[0], task, context)
        ends.append(context.findings["outputs"])
    first = next(iter(ends[0]))  # later layers see other models
    assert ends[1][first] <= ends[0][first] * 1.0001


def test_refit_and_whole_zeros_exclude_each_other():
    with pytest.raises(ValidationError, match="zeros=whole allows few"):
        GPTQ(bits=4, zeros="whole", refit=1)
