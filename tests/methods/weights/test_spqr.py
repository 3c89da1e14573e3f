"""SpQR against GPTQ's own loop where both are one thing, and against its rules written out by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from host_models import answer, host, inputs
from host_words import Words
from lessen.method import Context
from lessen.methods.sites import module_bytes
from lessen.methods.weights._shared.error_feedback import feedback, output_error
from lessen.methods.weights._shared.sparse_rounding import Rules, leave_one_out, range_of, round_sparsely
from lessen.methods.weights.spqr import SpQR
from lessen.stored.linears.spqr import SpQRLinear, layer_bytes
from lessen.testing.toys import TableTask


def problem(outputs=24, width=64, rows=300, seed=0):
    torch.manual_seed(seed)
    data = torch.randn(rows, width) @ torch.randn(width, width) + torch.randn(width)
    weight = torch.randn(outputs, width)
    weight[3, 5], weight[17, 40] = 9.0, -12.0
    return weight, data.t() @ data / rows


def plain(**changes):
    return Rules(
        **{"bits": 3, "group": 16, "stats_bits": 3, "stats_group": 8, "tau_share": 0.2, "leave_one_out": True} | changes
    )


def stored(weight, spread, rules):
    found = round_sparsely(weight, spread, rules)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made = SpQRLinear.from_codes(
        layer, found.codes, rules.bits, rules.group, found.scales, found.zeros, found.outliers, spread.order
    )
    made.check()
    return found, made


def gptq_with_unrounded_zero(weight, curvature, bits, group, damping, act_order):
    """Groups fitted when they begin, in float64, every column moved by the inverse curvature: no Cholesky factor."""
    weight, curvature = weight.double().clone(), curvature.double()
    order = curvature.diagonal().argsort(descending=True) if act_order else torch.arange(len(curvature))
    inverse = torch.linalg.inv(curvature + damping * curvature.diagonal().mean() * torch.eye(len(curvature)))
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    left = order.tolist()
    for place, column in enumerate(order.tolist()):
        if place % group == 0:
            members = order[place : place + group]
            low, high = weight[:, members].amin(1), weight[:, members].amax(1)
            scale, zero = (high - low) / (2**bits - 1), -low * (2**bits - 1) / (high - low)
        code = (weight[:, column] / scale + zero).round().clamp(0, 2**bits - 1)
        codes[:, place] = code.to(torch.uint8)
        error = weight[:, column] - scale * (code - zero)
        left.remove(column)
        weight[:, left] -= torch.outer(error, inverse[column, left] / inverse[column, column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [16, 24])
def test_without_outliers_and_coded_statistics_it_is_gptq_with_an_unrounded_zero(group, act_order):
    weight, curvature = problem(width=72)
    found = round_sparsely(
        weight, feedback(curvature, 0.1, act_order), plain(stats_bits=None, tau_share=math.inf, group=group)
    )
    expected = gptq_with_unrounded_zero(weight, curvature, 3, group, 0.1, act_order)
    assert float((found.codes != expected).float().mean()) < 0.01  # ties of float32
    assert not len(found.outliers.values)


def test_outliers_are_exact_and_fewer_the_higher_the_threshold():
    weight, curvature = problem()
    spread = feedback(curvature, 1.0, True)
    counts = []
    for share in (0.02, 0.2, 2.0, math.inf):
        found, made = stored(weight, spread, plain(tau_share=share))
        dense = made.dequantise()
        assert torch.equal(dense[found.outliers.rows, found.outliers.columns], found.outliers.values.float())
        counts.append(len(found.outliers.values))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0
    found, _ = stored(weight, spread, plain())
    kept = set(zip(found.outliers.rows.tolist(), found.outliers.columns.tolist(), strict=True))
    assert {(3, 5), (17, 40)} <= kept


def test_where_every_weight_is_kept_nothing_is_lost_but_fp16():
    weight, curvature = problem()
    found, made = stored(weight, feedback(curvature, 1.0, True), plain(tau_share=1e-12))
    assert len(found.outliers.values) > 0.99 * weight.numel()
    assert torch.allclose(made.dequantise(), weight, rtol=2e-3, atol=2e-3)


def test_leaving_a_weight_out_is_what_loops_say():
    torch.manual_seed(3)
    weights, powers = torch.randn(6, 4), torch.rand(6) + 0.5
    weights[2, 1] = 8.0

    def errors(group, used):
        low, high = min(group), max(group)
        scale = (high - low) / 7
        quantised = [(max(0, min(7, round(w / scale - low / scale))) + low / scale) * scale for w in group]
        return sum((w - q) ** 2 / p for w, q, p in zip(group, quantised, used, strict=True))

    found = leave_one_out(weights, powers, 3)
    for row in range(4):
        group, used = weights[:, row].tolist(), powers.tolist()
        for out in range(6):
            rest = group[:out] + group[out + 1 :], used[:out] + used[out + 1 :]
            assert float(found[out, row]) == pytest.approx(errors(group, used) - errors(*rest), abs=2e-4)
    assert int(found[:, 1].argmax()) == 2


def test_a_group_of_one_value_holds_it():
    for value in (0.0, 2.5, -3.0):
        scale, zero = range_of(torch.tensor([value]), torch.tensor([value]), 3)
        code = (value / scale.clamp_min(1e-9) + zero).round().clamp(0, 7)
        assert float((code - zero) * scale) == pytest.approx(value)


@pytest.mark.parametrize(("out", "width"), [(64, 128), (40, 72)])
def test_bytes_are_the_papers_bits(out, width):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    found, made = stored(weight, feedback(torch.eye(width), 1.0, True), plain(stats_group=16))
    kept = len(found.outliers.values)
    groups, runs = -(-width // 16), -(-out // 16)
    expected = (
        out * -(-width * 3 // 8) + 2 * groups * (-(-out * 3 // 8) + 4 * runs) + 4 * kept + 4 * (out + 1) + 2 * width
    )
    assert module_bytes(made) == expected
    if not width % 16:  # the sheet's formula, then what it leaves out: where rows begin, and the order of inputs
        bits = 3 + (3 + 3) / 16 + 2 * (16 + 16) / (16 * 16) + 32 * kept / (out * width)
        assert 8 * module_bytes(made) == bits * out * width + 32 * (out + 1) + 16 * width
    assert layer_bytes(nn.Linear(width, out, bias=False), 3, 16, 3, 16) == expected - 4 * kept - 2 * width


def test_outputs_move_less_with_outliers_kept_and_by_curvature():
    weight, curvature = problem(outputs=32, width=64)
    errors = {}
    for name, share in (("all", math.inf), ("sparse", 0.2)):
        _, made = stored(weight, feedback(curvature, 0.01, True), plain(tau_share=share))
        errors[name] = output_error(made.dequantise() - weight, curvature)
    _, made = stored(weight, feedback(torch.eye(64), 0.01, True), plain(tau_share=math.inf))
    errors["blind"] = output_error(made.dequantise() - weight, curvature)
    assert errors["sparse"] < errors["all"] < errors["blind"]


@pytest.mark.parametrize("hessian", ["input", "output"])
def test_a_host_is_made_smaller_and_answers(hessian):
    context = Context()
    made = SpQR(group=8, hessian=hessian, min_weights=1).apply(host("llama"), Words("llama"), context)
    layers = [module for module in made.modules() if isinstance(module, SpQRLinear)]
    assert len(layers) == len(context.findings["layers"]) == len(context.findings["outliers"]) == 14
    assert bool(torch.isfinite(answer(made, inputs("llama"))).all())


def test_a_dead_layer_is_named_and_stays_dead():
    task = TableTask()
    model = task.build()
    with torch.no_grad():
        model.second.weight.zero_()
    context = Context()
    made = SpQR(only="second").apply(model, task, context)
    assert context.findings["dead"] == ["second"]
    assert not bool(made.second.dequantise().any())


def test_what_does_not_fit_is_refused():
    weight, curvature = problem()
    _, made = stored(weight, feedback(curvature, 1.0, True), plain())
    for name, change, message in (
        ("values", lambda t: t[:1].fill_(torch.inf), "values hold NaN"),
        ("order", lambda t: t[:2].fill_(1), "every input once"),
        ("columns", lambda t: t[:1].fill_(64), "outside 0 to 63"),
        ("starts", lambda t: t[1:2].fill_(-1), "starts does not say"),
        ("scale_grids", lambda t: t.fill_(torch.nan), "scale_grids hold NaN"),
    ):
        before = getattr(made, name).clone()
        change(getattr(made, name))
        with pytest.raises(ValueError, match=message):
            made.check()
        getattr(made, name).copy_(before)
    made.check()
    for changed in ({"bits": 7}, {"group": 65}, {"stats_bits": 1}, {"outliers": -1}, {"ordered": 2}, {"bias": None}):
        with pytest.raises((ValueError, TypeError), match=next(iter(changed))):
            SpQRLinear.from_config({**made.config(), **changed})
