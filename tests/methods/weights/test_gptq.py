"""GPTQ against optimal brain quantisation written out column by column, without a Cholesky factor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from host_models import answer, host, inputs
from lessen.errors import NonFiniteError, TaskError
from lessen.method import Context
from lessen.methods.sites import Site
from lessen.methods.weights._shared.curvature import curvatures, ending_early, sharing
from lessen.methods.weights._shared.error_feedback import feedback, output_error, round_with_feedback
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.task import call_model
from lessen.testing.toys import TableTask


def problem(outputs=12, width=48, rows=200, seed=0):
    torch.manual_seed(seed)
    data = torch.randn(rows, width) @ torch.randn(width, width) + torch.randn(width)
    return torch.randn(outputs, width), data.t() @ data / rows


def reference(weight, curvature, grid, damping, order):
    """Round a column, move all that are left by the inverse curvature, eliminate the column from the inverse."""
    weight, curvature = weight.double().clone(), curvature.double()
    damped = curvature + damping * curvature.diagonal().mean() * torch.eye(len(curvature), dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    left = list(order)
    while left:
        column = left.pop(0)
        code = grid.codes(weight[:, column : column + 1].float(), first=column)
        codes[:, column : column + 1] = code
        error = weight[:, column] - grid.values(code, first=column)[:, 0].double()
        for other in left:
            weight[:, other] -= error * inverse[column, other] / inverse[column, column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group", "symmetric"), [(2, 16, False), (3, 48, True), (4, 20, False)])
def test_codes_are_those_of_optimal_brain_quantisation(bits, group, symmetric, act_order):
    weight, curvature = problem()
    grid = fit_grid(weight, bits, group, symmetric, "minmax")
    order = torch.argsort(curvature.diagonal(), descending=True) if act_order else torch.arange(48)
    found = round_with_feedback(weight, grid, feedback(curvature, 0.01, act_order), block=16)
    assert torch.equal(found, reference(weight, curvature, grid, 0.01, order.tolist()))


def test_the_factor_is_that_of_the_inverse():
    _, curvature = problem()
    spread = feedback(curvature, 0.01, by_curvature=True)
    damped = curvature + 0.01 * curvature.diagonal().mean() * torch.eye(48)
    inverse = torch.linalg.inv(damped.double())[spread.order][:, spread.order]
    assert torch.allclose(spread.upper.double().t() @ spread.upper.double(), inverse, rtol=1e-4, atol=1e-7)
    assert torch.equal(spread.upper, spread.upper.triu())


@pytest.mark.parametrize("act_order", [False, True])
def test_without_correlations_it_is_round_to_nearest(act_order):
    weight, _ = problem()
    grid = fit_grid(weight, 3, 16, False, "minmax")
    for curvature in (torch.eye(48), torch.diag(torch.rand(48) + 0.1), torch.zeros(48, 48)):
        found = round_with_feedback(weight, grid, feedback(curvature, 0.01, act_order))
        assert torch.equal(found, quantise(weight, grid))


def test_the_result_does_not_depend_on_the_columns_of_a_block():
    weight, curvature = problem(width=96)
    grid = fit_grid(weight, 3, 32, False, "minmax")
    spread = feedback(curvature, 0.01, True)
    found = [round_with_feedback(weight, grid, spread, block) for block in (1, 32, 96, 128)]
    assert all(float((one != found[0]).float().mean()) < 0.002 for one in found)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_move_less_than_by_round_to_nearest(bits):
    for seed in range(5):
        weight, curvature = problem(outputs=32, width=64, seed=seed)
        grid = fit_grid(weight, bits, 32, False, "minmax")
        nearest = output_error(grid.values(quantise(weight, grid)) - weight, curvature)
        for act_order in (False, True):
            codes = round_with_feedback(weight, grid, feedback(curvature, 0.01, act_order))
            assert output_error(grid.values(codes) - weight, curvature) < 0.7 * nearest


def test_inputs_that_are_never_excited_are_rounded_to_nearest():
    weight, curvature = problem()
    curvature[[3, 7]] = 0
    curvature[:, [3, 7]] = 0
    grid = fit_grid(weight, 3, 16, False, "minmax")
    found = round_with_feedback(weight, grid, feedback(curvature, 0.01, True))
    assert torch.equal(found[:, [3, 7]], quantise(weight, grid)[:, [3, 7]])


def test_curvature_of_low_rank_is_damped_until_it_has_a_factor():
    row = torch.randn(1, 48)
    spread = feedback(row.t() @ row, 1e-10, False)
    assert bool(torch.isfinite(spread.upper).all())
    with pytest.raises(NonFiniteError, match="no Cholesky factor"):
        feedback(torch.full((4, 4), torch.nan), 0.01, False)


def test_layers_that_read_one_tensor_are_found():
    model, batch = host("llama"), inputs("llama")
    layers = dict(model.named_modules())
    sites = RTN(min_weights=1).candidates(model, (nn.Linear,), Context())
    sets = sharing(sites, lambda: model(**batch))
    first = [[site.path.rpartition(".")[2] for site in members] for members in sets[:4]]
    assert first == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    rows = []
    layers["model.layers.1.mlp.down_proj"].register_forward_pre_hook(lambda _m, given: rows.append(given[0]))
    found = curvatures(sets, lambda: model(**batch))
    x = rows[0].reshape(-1, rows[0].shape[-1])
    assert torch.allclose(found[7].total, x.t() @ x, rtol=1e-4, atol=1e-4)
    assert found[7].count == len(x)


def test_a_forward_ends_where_it_has_shown_enough_and_shows_the_same():
    model, batch = host("llama"), inputs("llama")
    sites = RTN(min_weights=1).candidates(model, (nn.Linear,), Context())
    again: set[str] = set()
    sets = sharing(sites, lambda: model(**batch), again)
    assert again == set()
    finished = []
    sets[1][0].module.register_forward_hook(lambda *_: finished.append("o_proj"))
    whole = curvatures(sets[:2], lambda: [model(**batch) for _ in range(3)])
    early = curvatures(sets[:2], ending_early(sets[:2], [lambda: model(**batch)] * 3))
    assert finished == ["o_proj"] * 3  # of the whole forwards only
    assert [one.count for one in early] == [one.count for one in whole]
    assert all(torch.equal(one.total, other.total) for one, other in zip(early, whole, strict=True))


def test_a_layer_that_is_called_twice_is_told():
    layer = nn.Linear(4, 4)
    again: set[str] = set()
    sharing([Site(("twice",), layer)], lambda: layer(layer(torch.zeros(1, 4))), again)
    assert again == {"twice"}


class Host(TableTask):
    """Hosts with random inputs as calibration data."""

    def __init__(self, name):
        self.host, self.name = name, name

    def batches(self, split, seed=0):
        return [(inputs(self.host, seed=number), None) for number in range(6)]

    def inputs(self, batch):
        return batch[0]

    def forward(self, model, batch):
        return call_model(model, batch[0])


KNOBS = {"bits": 3, "group": 32, "min_weights": 1}


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "bert", "t5", "vit"])
def test_blocks_of_hosts_are_quantised_and_nothing_else(name, true_sequential):
    model = host(name)
    context = Context()
    made = GPTQ(**KNOBS, true_sequential=true_sequential, table_bits=None).apply(model, Host(name), context)
    kinds = {path for path, module in made.named_modules() if isinstance(module, GroupQuantizedLinear)}
    assert kinds == set(context.findings["layers"]) == set(context.findings["outputs"])
    assert "not_calibrated" not in context.findings
    assert bool(torch.isfinite(answer(made, inputs(name))).all())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())
    plain = Context()
    RTN(**KNOBS, only=tuple(kinds)).apply(host(name), None, plain)
    # weights move further than to the nearest level, so that outputs move less
    assert sum(context.findings["layers"].values()) > sum(plain.findings["layers"].values())


def test_each_layer_sees_what_goes_into_it_after_those_before_it_are_quantised():
    """The last layer's codes follow from its inputs in the finished model, as nothing after it changes them."""
    name, last = "llama", "model.layers.1.mlp.down_proj"
    before = host(name).get_submodule(last)
    made = GPTQ(**KNOBS).apply(host(name), Host(name), Context())
    layer = made.get_submodule(last)
    rows = []
    handle = layer.register_forward_pre_hook(lambda _m, given: rows.append(given[0].reshape(-1, 48)))
    for batch in Host(name).batches("train"):
        with torch.no_grad():
            made(**batch[0])
    handle.remove()
    x = torch.cat(rows)
    grid = fit_grid(before.weight, 3, 32, False, "minmax")
    codes = round_with_feedback(before.weight, grid, feedback(x.t() @ x / len(x), 0.01, True))
    assert float((grid.values(codes) != layer.dequantise()).float().mean()) < 0.01


def test_a_model_without_blocks_is_calibrated_in_one_pass():
    task = TableTask()
    model = task.reference(0)
    results = {}
    for method in (RTN(bits=2, group=32, only="second"), GPTQ(bits=2, group=32, only="second")):
        made, _ = Recipe([method]).apply(model, task)
        with torch.no_grad():
            results[method.card.name] = torch.cat(
                [(task.forward(made, batch) - task.forward(model, batch)).square() for batch in task.batches("train")]
            ).mean()
    assert results["gptq"] < results["rtn"]


def test_no_calibration_data_is_one_line():
    class Empty(Host):
        def batches(self, split, seed=0):
            return []

    with pytest.raises(TaskError, match="no calibration batches"):
        GPTQ(**KNOBS).apply(host("llama"), Empty("llama"), Context())
