from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.artifact import folder as artifact
from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.methods.weights.rtn import RTN
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid


def linear(weight, bias=False):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def applied(weight, **knobs):
    context = Context()
    made = RTN(min_weights=1, **knobs).apply(nn.Sequential(linear(weight)), None, context)
    return made[0], context.findings


def columns(grid, width):
    return grid.scales.float().repeat_interleave(grid.group, 1)[:, :width]


def test_scales_and_codes_have_closed_forms():
    weight = torch.linspace(-3.0, 4.5, 32).repeat(2, 1)
    made, _ = applied(weight, bits=4, group=32)
    assert made.minimums.tolist() == [[-3.0], [-3.0]]
    assert made.scales.tolist() == [[0.5], [0.5]]
    assert torch.equal(made.grid.codes(weight), torch.round((weight + 3) / 0.5).to(torch.uint8))
    made, _ = applied(weight, bits=4, group=32, symmetric=True)
    assert float(made.scales[0, 0]) == pytest.approx(2 * 4.5 / 15, rel=1e-3)
    assert made.minimums is None
    assert torch.equal(made.grid.codes(torch.zeros(2, 32)), torch.full((2, 32), 8, dtype=torch.uint8))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 50, 150])
@pytest.mark.parametrize("bits", WIDTHS)
def test_no_weight_is_further_than_half_a_step_from_its_level(bits, group, symmetric):
    torch.manual_seed(0)
    kinds = [
        torch.randn(40, 150),
        torch.rand(40, 150) + 1.0,
        torch.rand(40, 150) * 1e-2 - 100.0,
        torch.randn(40, 150) ** 5,
    ]
    for weight in [*kinds, torch.full((4, 150), 1.0003), torch.zeros(4, 150)]:
        grid = fit_grid(weight, bits, group, symmetric, "minmax")
        away = (grid.values(quantise(weight, grid)) - weight).abs()
        assert bool((away <= columns(grid, 150) / 2 * (1 + 1e-5) + weight.abs() * 3e-7).all())


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_searched_range_errs_no_more_in_any_group_and_less_where_one_weight_sticks_out(symmetric):
    torch.manual_seed(1)
    weight = torch.randn(8, 128)
    weight[:, ::64] *= 6
    errors = {}
    for ranges in ("minmax", "search"):
        grid = fit_grid(weight, 3, 64, symmetric, ranges)
        errors[ranges] = (grid.values(quantise(weight, grid)) - weight).abs().pow(2.4).view(8, 2, 64).sum(-1)
    assert bool((errors["search"] <= errors["minmax"] * (1 + 1e-5)).all())
    assert float(errors["search"].sum()) < 0.9 * float(errors["minmax"].sum())


def test_groups_stand_by_themselves_and_the_last_may_be_shorter():
    torch.manual_seed(2)
    weight = torch.randn(6, 100)
    made, findings = applied(weight, bits=3, group=64)
    assert made.scales.shape == (6, 2)
    assert findings["short_group"] == {"0": 36}
    for columns_of in (slice(0, 64), slice(64, 100)):
        alone, _ = applied(weight[:, columns_of], bits=3, group=64)
        assert torch.equal(made.dequantise()[:, columns_of], alone.dequantise())
    row, findings = applied(weight, bits=3, group=None)
    assert row.scales.shape == (6, 1)
    assert "short_group" not in findings


def test_weights_that_lie_on_the_grid_already_are_told():
    torch.manual_seed(3)
    codes = torch.randint(0, 16, (32, 64), dtype=torch.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    grid = GroupGrid(4, 32, (torch.rand(32, 2) + 0.1).half(), torch.randn(32, 2).half())
    weight = grid.values(codes)
    made, findings = applied(weight, bits=4, group=32)
    assert torch.equal(made.dequantise(), weight)
    assert findings["lossless"] == ["0"]
    assert findings["warning"].startswith("lossless, nothing to learn: 1 of 1 layers")
    for knobs in ({"bits": 4, "group": 64}, {"bits": 3, "group": 32}):
        assert "warning" not in applied(weight, **knobs)[1]
    assert "warning" not in applied(torch.randn(64, 64), bits=8, group=32)[1]


def test_a_dead_layer_stays_zero_and_is_named():
    for symmetric in (False, True):
        made, findings = applied(torch.zeros(8, 64), bits=2, symmetric=symmetric)
        assert not bool(made.dequantise().any())
        assert findings["dead"] == ["0"]
        assert "warning" not in findings


@pytest.mark.parametrize(
    ("weight", "reason"),
    [(torch.full((8, 64), 1e5), "beyond 65504"), (torch.full((8, 64), 1e-9), "finer than fp16 scales")],
)
def test_ranges_that_fp16_cannot_hold_are_left_alone(weight, reason):
    with pytest.raises(NothingMatchedError, match=reason):
        applied(weight)


def test_layers_that_get_no_smaller_are_left_alone():
    with pytest.raises(NothingMatchedError, match="no fewer bytes"):
        RTN(bits=8, min_weights=1).apply(linear(torch.randn(64, 1), bias=True), None, Context())


def test_only_and_skip_choose_layers():
    model = nn.ModuleDict({name: linear(torch.randn(16, 64)) for name in ("up", "down", "head")})
    context = Context()
    made = RTN(skip="head", only=("up", "head"), min_weights=1).apply(model, None, context)
    assert [type(made[name]).__name__ for name in ("up", "down", "head")] == [
        "GroupQuantizedLinear",
        "Linear",
        "Linear",
    ]
    assert list(context.findings["layers"]) == ["up"]


def test_bf16_layers_are_taken_and_answer_in_bf16():
    layer = linear(torch.randn(16, 64), bias=True).bfloat16()
    made = RTN(bits=8, min_weights=1).apply(nn.Sequential(layer), None, Context())
    inputs = torch.randn(4, 64).bfloat16()
    layer.requires_grad_(False)
    assert made(inputs).dtype == torch.bfloat16
    error = made(inputs).float() - layer(inputs).float()
    assert float(error.norm() / layer(inputs).float().norm()) < 0.02


def test_linears_of_hosts_are_replaced_and_come_back_bit_for_bit(tmp_path):
    from host_models import answer, host, inputs

    for name in ("llama", "bert", "vit"):
        model, batch = host(name), inputs(name)
        expected = answer(model, batch)
        base = host(name)
        made = RTN(bits=8, group=32, min_weights=1).apply(model, None, Context())
        found = answer(made, batch)
        assert 0 < float((found - expected).norm() / expected.norm()) < 0.05
        artifact.save(tmp_path / name, made, base)
        assert torch.equal(answer(artifact.load(tmp_path / name, model=base), batch), found)
