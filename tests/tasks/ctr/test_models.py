"""Every model against a few lines that spell its equation out with loops, values and gradients, in float64."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from lessen.data.columns import IdField, Layout
from lessen.errors import ConfigError, DataError, TaskError
from lessen.stored.fields import Segment
from lessen.tasks.ctr.layers import Dice, InnerProducts
from lessen.tasks.ctr.models import MODELS, ModelName
from lessen.tasks.ctr.models.din import ActivationUnit
from lessen.tasks.ctr.models.fgcnn import FGCNN
from lessen.tasks.ctr.models.finalmlp import FinalMLP
from lessen.tasks.ctr.models.xdeepfm import CompressedInteractions
from plain_click_models import (
    ARGUMENTS,
    DIM,
    LAYOUT,
    PLAIN,
    SMALL,
    build,
    fields_of,
    inputs,
    pairs,
    perceptron,
    plain,
)


@pytest.mark.parametrize("name", MODELS)
def test_equals_its_equation_with_gradients(name: str) -> None:
    model, batch = build(name, **ARGUMENTS.get(name, SMALL)), inputs()
    found, expected = model(**batch), plain(name, model, batch)
    assert torch.allclose(found, expected, atol=1e-10)
    parameters = list(model.parameters())
    weight = torch.arange(1.0, 7.0, dtype=torch.float64)
    ours = torch.autograd.grad((found * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left, torch.zeros_like(left) if right is None else right, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_padding_adds_nothing_and_one_row_is_scored_as_in_a_batch(name: str) -> None:
    model, batch = build(name, **ARGUMENTS.get(name, SMALL)), inputs()
    whole = model(**batch)
    assert whole.shape == (6,)
    for row in range(6):
        assert torch.allclose(model(batch["ids"][row : row + 1], batch["numeric"][row : row + 1]), whole[row : row + 1])
    before = whole[1]
    with torch.no_grad():
        model.vectors.table.weight[0] = 3.0  # a compressed table need not keep padding at zero
    assert torch.allclose(model(**batch)[1], before)


@pytest.mark.parametrize("name", MODELS)
def test_trains_one_step_in_float32(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](LAYOUT, dim=DIM).train()  # type: ignore[index]
    batch = inputs()
    loss = model(batch["ids"], batch["numeric"].float()).square().sum()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_name_has_a_model() -> None:
    assert set(get_args(ModelName)) == set(MODELS) == set(PLAIN)


def test_missing_numbers_are_named() -> None:
    with pytest.raises(DataError, match="needs numeric inputs: price, age"):
        build("dnn", **SMALL)(inputs()["ids"])


def test_one_cin_map_of_ones_is_the_square_of_the_sum() -> None:
    layer = CompressedInteractions(3, (1,)).double()
    nn.init.ones_(layer.layers[0].weight)  # type: ignore[arg-type]
    vectors = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.allclose(layer(vectors)[:, 0], vectors.sum(1).square().sum(1))


def test_products_are_those_of_the_pairwise_loop_in_upper_triangular_order() -> None:
    vectors = torch.randn(2, 4, 3)
    expected = torch.stack([torch.stack(pairs(list(row))) for row in vectors])
    assert torch.allclose(InnerProducts(4)(vectors), expected)


def test_dcnv2_with_rank_one_matrices_is_dcn() -> None:
    one, two = build("dcn", **SMALL).cross, build("dcnv2", **SMALL).cross
    for weight, layer in zip(one.weights, two.layers, strict=True):
        layer.weight.data = weight.weight.data.expand(24, 24).clone()
        layer.bias.data.zero_()
    x = torch.randn(3, 24, dtype=torch.float64)
    assert torch.allclose(one(x), two(x))


def test_parameter_counts_are_those_of_the_published_runs() -> None:
    """BARS, Frappe_x1: 10 fields, 5,389 rows, d 10, 400-400-400 with BatchNorm."""
    segments = tuple(Segment(f"f{i}", 1 + i * 500, 500 if i < 9 else 888) for i in range(10))
    layout = Layout(tuple(IdField(s.name, "categorical", i, 1, s.name) for i, s in enumerate(segments)), segments)
    assert layout.rows == 5389
    hidden = {"hidden": (400, 400, 400)}
    published: dict[str, tuple[int, dict[str, Any]]] = {
        "lr": (5_390, {}),
        "fm": (59_280, {}),
        "deepfm": (423_280, hidden),
        "dcnv2": (458_391, {**hidden, "cross_layers": 4}),
        "autoint+": (622_180, {**hidden, "layers": 5, "heads": 4, "width": 128}),
    }
    for name, (count, arguments) in published.items():
        model = MODELS[name](layout, dim=10, **arguments)  # type: ignore[index]
        assert sum(p.numel() for p in model.parameters()) == count, name


# -- DIN and Dice ---------------------------------------------------------------------------------------------------
def test_din_ignores_the_order_of_the_history_and_counts_repetition() -> None:
    model, batch = build("din", **ARGUMENTS["din"]), inputs()
    whole = model(**batch)
    shuffled = batch["ids"].clone()
    shuffled[:, 5:9] = batch["ids"][:, [8, 6, 5, 7]]
    assert torch.allclose(model(shuffled, batch["numeric"]), whole)
    unit, keys = model.units[0], torch.randn(1, 2, DIM, dtype=torch.float64)
    query, twice = torch.randn(1, DIM, dtype=torch.float64), keys[:, [0, 0]]
    once = unit(query, keys[:, :1], torch.ones(1, 1))
    assert torch.allclose(unit(query, twice, torch.ones(1, 2)), 2 * once)
    assert torch.equal(unit(query, keys, torch.zeros(1, 2)), torch.zeros(1, DIM, dtype=torch.float64))


def test_din_without_a_shared_sequence_is_refused() -> None:
    layout = Layout((IdField("user", "categorical", 0, 1, "user"),), (Segment("user", 1, 5),))
    with pytest.raises(TaskError, match="shares its vocabulary"):
        MODELS["din"](layout)


def test_dice_in_training_uses_real_positions_only() -> None:
    layer = Dice(3)
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    real = x[mask]
    gate = torch.sigmoid((real - real.mean(0)) / (real.var(0, unbiased=False) + 1e-8).sqrt())
    assert torch.allclose(layer(x, mask)[mask], gate * real, atol=1e-6)
    assert torch.allclose(layer.mean, 0.1 * real.mean(0), atol=1e-6)
    changed = x.clone()
    changed[~mask] = 1e6
    assert torch.allclose(Dice(3)(changed, mask)[mask], gate * real, atol=1e-6)


def test_dice_with_alpha_one_is_the_identity_and_its_gradient_is_right() -> None:
    layer = Dice(3).double().eval()
    nn.init.ones_(layer.alpha)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(layer(x), x)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(Dice(3).double().train(), (x,))


def test_attention_unit_with_constant_weight_is_mean_pooling() -> None:
    unit = ActivationUnit(DIM, (5,))
    nn.init.zeros_(unit.output.weight)
    nn.init.constant_(unit.output.bias, 0.25)
    keys = torch.randn(3, 4, DIM)
    assert torch.allclose(unit(torch.randn(3, DIM), keys, torch.ones(3, 4)), keys.mean(1), atol=1e-6)


# -- FinalMLP and FGCNN ---------------------------------------------------------------------------------------------
def test_gate_without_context_trains() -> None:
    """The published code's gate is dead there: its hidden layer and vector get no gradient."""
    model = FinalMLP(LAYOUT, dim=DIM).train()
    batch = inputs()
    model(batch["ids"], batch["numeric"].float()).sum().backward()
    assert model.gate1.constant.grad is not None
    assert (model.gate1.constant.grad != 0).float().mean() > 0.9


def test_finalmlp_limits() -> None:
    with pytest.raises(ConfigError, match=r"heads = 5 must divide the last widths 128 and 64"):
        FinalMLP(LAYOUT, heads=5)
    with pytest.raises(ConfigError, match="categorical or numeric context fields, not tags"):
        FinalMLP(LAYOUT, context1=("tags",))
    model = build("finalmlp", **ARGUMENTS["finalmlp"])
    swapped = build("finalmlp", hidden1=(6,), hidden2=(8,), heads=2, context2=("user",))
    for mine, other in (("stream1", "stream2"), ("gate1", "gate2"), ("output1", "output2")):
        setattr(swapped, other, getattr(model, mine))
        setattr(swapped, mine, getattr(model, other))
    swapped.vectors, swapped.bilinear.data = model.vectors, model.bilinear.data.transpose(1, 2)
    assert torch.allclose(swapped(**inputs()), model(**inputs()))


def test_fgcnn_without_layers_is_ipnn_and_even_kernels_are_refused() -> None:
    plain_, new = build("ipnn", **SMALL), build("fgcnn", channels=(), **SMALL)
    new.vectors, new.deep = plain_.vectors, plain_.deep
    assert torch.equal(new(**inputs()), plain_(**inputs()))
    with pytest.raises(ConfigError, match="kernel = 4 must be odd"):
        FGCNN(LAYOUT, kernel=4)
    shared = FGCNN(LAYOUT, dim=DIM, share_tables=True)
    assert sum(isinstance(m, nn.Embedding) for m in shared.modules()) == 1


# -- variants that BARS ran -----------------------------------------------------------------------------------------
def test_autoint_with_first_order_weights_is_autoint_plus_their_sum() -> None:
    narrow, wide = (build(name, width=6, wide=w) for name, w in (("autoint", False), ("autoint", True)))
    narrow.attention, narrow.output = wide.attention, wide.output
    narrow.vectors.table.weight.data = wide.vectors.table.weight.data[:, :-1]
    narrow.vectors.values.data = wide.vectors.values.data[:, :-1]
    first = torch.stack([sum(v[-1] for v in row) for row in fields_of(wide.vectors, inputs())])  # type: ignore[arg-type]
    assert torch.allclose(wide(**inputs()), narrow(**inputs()) + first)


def test_attention_without_residual_and_with_dropout() -> None:
    model, x = build("autoint", width=6, residual=False, layer_norm=False, attention_dropout=0.5), torch.randn(2, 5, 4)
    layer = model.attention[0]
    kept = layer.double()(x.double())
    assert layer.residual is None
    nn.init.zeros_(layer.values.weight)
    assert torch.equal(layer(x.double()), torch.zeros_like(kept))
    model.train()
    assert not torch.equal(model.attention[1](kept), model.attention[1](kept))


def test_dlrm_cat_sees_the_vectors_themselves() -> None:
    model, batch = build("dlrm", interaction="cat", bottom_dropout=0.3, **SMALL), inputs()
    assert [type(layer) for layer in model.bottom] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
        nn.ReLU,
    ]
    rows = zip(fields_of(model.vectors, batch), batch["numeric"], strict=True)
    expected = [perceptron(model.top, torch.cat([perceptron(model.bottom, n), *row])) for row, n in rows]
    assert torch.allclose(model(**batch), torch.stack(expected)[:, 0])


def test_finalmlp_gate_from_numbers_and_ids_and_streams_of_their_own() -> None:
    model = build(
        "finalmlp",
        hidden1=(8,),
        hidden2=(6,),
        heads=2,
        context1=("price", "user"),
        dropout=0.4,
        dropout2=0.1,
        batch_norm2=False,
    )
    assert [type(layer).__name__ for layer in model.stream2] == ["Linear", "ReLU", "Dropout"]
    assert (model.stream1[-1].p, model.stream2[-1].p) == (0.4, 0.1)
    batch = inputs()
    for gate, ids, numbers in zip(model.gate1(**batch), batch["ids"].tolist(), batch["numeric"], strict=True):
        context = torch.cat([model.gate1.table.weight[ids[0]], numbers[0] * model.gate1.values[0]])
        assert torch.allclose(gate, 2 * torch.sigmoid(perceptron(model.gate1.layers, context)))


def test_finalmlp_without_gates_is_one_with_open_gates() -> None:
    arguments = {"hidden1": (8,), "hidden2": (6,), "heads": 2}
    plain_, gated = build("finalmlp", gates=False, **arguments), build("finalmlp", **arguments)
    gated.load_state_dict(plain_.state_dict(), strict=False)
    assert torch.allclose(
        gated(**inputs()), plain_(**inputs())
    )  # the constant of an untrained gate is 0: 2 sigmoid = 1


def test_fgcnn_without_batch_norm_in_its_convolutions() -> None:
    model = build("fgcnn", channels=(2, 3), convolution_batch_norm=False, **SMALL)
    assert [type(layer) for layer in model.convolutions[0]] == [nn.Conv2d, nn.Tanh, nn.MaxPool2d]
    assert model(**inputs()).shape == (6,)
