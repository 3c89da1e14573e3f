"""Scales that move between layers: outputs stay, errors of rounding fall."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.artifact import folder as artifact
from lessen.errors import NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.weights._shared.curvature import curvatures
from lessen.methods.weights._shared.error_feedback import output_error
from lessen.methods.weights._shared.scaling import Source, normalised
from lessen.methods.weights.awq import AWQ
from lessen.methods.weights.dynamic_int8 import DynamicInt8Linears
from lessen.methods.weights.rtn import RTN
from lessen.methods.weights.smoothquant import SmoothQuant
from lessen.recipe import Recipe
from lessen.stored.linears.scaled_input import ScaledInput
from lessen.testing.toys import TableTask

KNOBS = {"bits": 3, "group": 32, "min_weights": 1, "table_bits": None, "grid": 8}
INTO = {  # what takes the scales of q, of the output projection, and of down, in block 0
    "llama": ("input_layernorm", "self_attn.v_proj", "mlp.up_proj"),
    "gemma": ("input_layernorm", "self_attn.v_proj", "mlp.up_proj"),
    "gemma2": ("input_layernorm", "self_attn.v_proj", "mlp.up_proj"),
    "qwen3": ("input_layernorm", "self_attn.v_proj", "mlp.up_proj"),
    "phi3": ("input_layernorm", "self_attn.qkv_proj", "mlp.gate_up_proj"),
    "gpt2": ("ln_1", "attn.c_attn", "stored"),
    "gpt_neox": ("input_layernorm", "attention.query_key_value", "stored"),
    "opt": ("self_attn_layer_norm", "self_attn.v_proj", "fc1"),
    "bert": ("stored", "attention.self.value", "stored"),
    "vit": ("layernorm_before", "attention.v_proj", "stored"),
}


@pytest.mark.parametrize("name", INTO)
def test_smoothing_changes_no_answer_and_goes_where_it_can(name):
    model, context = host(name), Context()
    before = answer(model, inputs(name))
    made = SmoothQuant(calibration_batches=2).apply(model, Host(name), context)
    after = answer(made, inputs(name))
    assert float((after - before).norm() / before.norm()) < 1e-4
    into = context.findings["scales"]
    heads = [str(place).split("0.", 1)[-1] for path, place in into.items() if ".0." in path]
    assert len(into) >= 6
    wanted = INTO[name]
    for place in wanted:
        assert any(found.endswith(place) for found in heads), f"{place} not among {into}"
    if name != "bert":
        assert "stored" not in set(into.values()) or "stored" in wanted
    assert any(isinstance(module, ScaledInput) for module in made.modules()) == ("stored" in wanted)


def test_a_value_row_that_makes_inputs_of_several_heads_has_one_scale():
    source = Source(None, torch.tensor([0, 1, 0, 1, 2, 3, 2, 3]))
    scales = torch.tensor([1.0, 2.0, 4.0, 8.0, 1.0, 1.0, 9.0, 1.0])
    assert torch.allclose(source.tied(scales), torch.tensor([2.0, 4.0, 2.0, 4.0, 3.0, 1.0, 3.0, 1.0]))
    assert torch.equal(normalised(torch.zeros(3)), torch.ones(3))
    assert torch.allclose(normalised(torch.tensor([1.0, 4.0])), torch.tensor([0.5, 2.0]))


def outlying(name: str):
    """A host some of whose inputs stick out, as those of trained models do."""
    model = host(name)
    for path, module in model.named_modules():
        if "norm" in path.lower() and getattr(module, "weight", None) is not None and module.weight.dim() == 1:
            module.weight.data[::11] *= 12
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_awq_errs_less_on_outputs_than_rounding_to_nearest(name):
    given, task = [inputs(name, seed=0)], Host(name, 1)
    exact = answer(outlying(name), given[0])
    errors = {}
    for method in (RTN(**{k: v for k, v in KNOBS.items() if k != "grid"}, only=BLOCKS[name]), AWQ(**KNOBS)):
        context = Context()
        made = method.apply(outlying(name), task, context)
        errors[method.card.name] = float((answer(made, given[0]) - exact).norm() / exact.norm())
        if method.card.name == "awq":
            exponents = [entry["exponent"] for entry in context.findings["scales"].values()]
            assert any(exponents)
            assert set(context.findings["scales"]) == set(map(plain, context.findings["layers"]))
    assert errors["awq"] < errors["rtn"]


BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "encoder"}


def plain(path):
    return path.removesuffix(".layer")


def test_the_chosen_exponent_is_the_best_of_the_grid():
    torch.manual_seed(0)
    layer = nn.Linear(64, 24)
    rows = torch.randn(400, 64) * torch.logspace(-1.5, 1.5, 64)
    curvature = rows.t() @ rows / len(rows)
    method = AWQ(bits=3, group=32, grid=10)
    exponent, scales = method.search([layer], curvature, None)
    errors = {}
    for step in range(11):
        tried = normalised(curvature.diagonal().sqrt() ** (step / 10))
        scaled = nn.Linear(64, 24)
        scaled.weight.data = layer.weight.data * tried
        made = RTN(bits=3, group=32, min_weights=1).apply(nn.Sequential(scaled), None, Context())[0]
        errors[step / 10] = output_error(made.dequantise() / tried - layer.weight.detach(), curvature)
    assert exponent == min(errors, key=errors.get) > 0
    assert torch.allclose(scales, normalised(curvature.diagonal().sqrt() ** exponent))
    dead = method.search([layer], torch.zeros(64, 64), None)
    assert dead[0] == 0
    assert torch.equal(dead[1], torch.ones(64))


def test_where_nothing_can_take_the_scales_they_are_stored_and_survive_the_artifact(tmp_path):
    task = TableTask()
    model = task.reference(0)
    with torch.no_grad():  # inputs of very different size
        model.items.weight[:, ::5] *= 20
    made, ledger = Recipe([AWQ(bits=2, group=32, min_weights=64)]).apply(model, task)
    places = {entry["into"] for entry in ledger[0].findings["scales"].values()}
    assert "stored" in places
    assert places <= {"stored", "nothing"}
    artifact.save(tmp_path / "made", made, task.build())
    loaded = artifact.load(tmp_path / "made", task.build())
    batch = task.example_batch()
    with torch.no_grad():
        assert torch.equal(task.forward(loaded, batch), task.forward(made, batch))
    wrapped = next(module for module in made.modules() if isinstance(module, ScaledInput))
    x = torch.randn(5, wrapped.in_features)
    assert torch.allclose(wrapped(x), x @ wrapped.dequantise().t() + wrapped.layer.bias, atol=1e-5)


def test_smoothing_then_int8_runs_and_errs_less_where_activations_have_outliers():
    given = inputs("llama", seed=9)
    exact = answer(outlying("llama"), given)
    errors = []
    for steps in ([DynamicInt8Linears(min_weights=64)], [SmoothQuant(), DynamicInt8Linears(min_weights=64)]):
        model = outlying("llama")
        for step in steps:
            model = step.apply(model, Host("llama"), Context())
        errors.append(float((answer(model, given) - exact).norm() / exact.norm()))
    assert errors[1] < errors[0]


def test_what_cannot_be_done_is_one_line():
    class Empty(Host):
        def batches(self, split, seed=0):
            return []

    for method in (AWQ(**KNOBS), SmoothQuant()):
        with pytest.raises(TaskError, match="no calibration batches"):
            method.apply(host("llama"), Empty("llama"), Context())
    with pytest.raises(NothingMatchedError, match="nothing that makes inputs can take scales; set store=true"):
        SmoothQuant(store=False).apply(TableTask().reference(0), TableTask(), Context())


def test_awq_on_a_dead_layer():
    model, context = host("llama"), Context()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    made = AWQ(**KNOBS).apply(model, Host("llama"), context)
    assert "model.layers.0.mlp.up_proj" in context.findings["dead"]
    assert bool(torch.isfinite(answer(made, inputs("llama"))).all())
    found = curvatures([], lambda: None)
    assert found == []
