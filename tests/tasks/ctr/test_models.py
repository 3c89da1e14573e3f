"""Every model against a few lines that spell its equation out with loops, values and gradients, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from lessen.data.columns import IdField, Layout
from lessen.errors import ConfigError, DataError, TaskError
from lessen.stored.fields import Segment
from lessen.tasks.ctr.layers import Dice, InnerProducts
from lessen.tasks.ctr.models import MODELS, ModelName
from lessen.tasks.ctr.models.din import ActivationUnit
from lessen.tasks.ctr.models.fgcnn import FGCNN
from lessen.tasks.ctr.models.finalmlp import FinalMLP
from lessen.tasks.ctr.models.xdeepfm import CompressedInteractions

LAYOUT = Layout(
    (
        IdField("user", "categorical", 0, 1, "user"),
        IdField("item", "categorical", 1, 1, "item"),
        IdField("tags", "multi", 2, 3, "tags"),
        IdField("history", "sequence", 5, 4, "item"),
    ),
    (Segment("user", 1, 5), Segment("item", 6, 7), Segment("tags", 13, 4)),
    ("price", "age"),
)
DIM = 4
Inputs = dict[str, Tensor]


def inputs(rows: int = 6) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def draw(start: int, count: int, width: int) -> Tensor:
        return torch.randint(start, start + count, (rows, width), generator=generator)

    tags, history = draw(13, 4, 3), draw(6, 7, 4)
    tags[0, 1:], history[1] = 0, 0  # one tag only; no history at all
    history[2, 2:] = 0
    ids = torch.cat([draw(1, 5, 1), draw(6, 7, 1), tags, history], dim=1).int()
    return {"ids": ids, "numeric": torch.rand(rows, 2, generator=generator, dtype=torch.float64)}


def build(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = MODELS[name](LAYOUT, **{"dim": DIM, "std": 0.5, **arguments}).double()  # type: ignore[index]
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        if isinstance(module, Dice):
            nn.init.normal_(module.mean)
            nn.init.uniform_(module.variance, 0.5, 2.0)
            nn.init.normal_(module.alpha)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model.eval()


def fields_of(vectors: Any, batch: Inputs) -> list[list[Tensor]]:
    """The vectors of each row, field by field, by plain indexing."""
    table, rows = vectors.table.weight, []
    for ids, numbers in zip(batch["ids"].tolist(), batch["numeric"], strict=True):
        found = []
        for field in LAYOUT.fields:
            known = [i for i in ids[field.start : field.start + field.width] if i > 0]
            found.append(sum(table[i] for i in known) / len(known) if known else torch.zeros_like(table[0]))
        if vectors.values is not None:
            found += [numbers[k] * vectors.values[k] for k in range(2)]
        rows.append(found)
    return rows


def perceptron(layers: nn.Sequential, x: Tensor) -> Tensor:
    """An MLP in eval mode from its numbers: W x + b, normalise, activate."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = layer.weight @ x + layer.bias
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - layer.running_mean) / (layer.running_var + layer.eps) ** 0.5 * layer.weight + layer.bias
        elif isinstance(layer, nn.ReLU):
            x = x * (x > 0)
        elif isinstance(layer, Dice):
            x = dice(layer, x)
    return x


def dice(layer: Dice, x: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-(x - layer.mean) / (layer.variance + layer.eps) ** 0.5))
    return p * x + (1 - p) * layer.alpha * x


def pairs(vectors: list[Tensor]) -> list[Tensor]:
    return [a @ b for a, b in combinations(vectors, 2)]


def lr(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    return model.bias + sum(v[0] for v in row)


def fm(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    return model.bias + sum(v[-1] for v in row) + sum(pairs([v[:-1] for v in row]))


def dnn(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    return perceptron(model.deep, torch.cat(row))


def ipnn(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    return perceptron(model.deep, torch.cat([*row, torch.stack(pairs(row))]))


def deepfm(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    vectors = [v[:-1] for v in row]
    return sum(v[-1] for v in row) + sum(pairs(vectors)) + perceptron(model.deep, torch.cat(vectors))


def dcn(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    x = x0 = torch.cat(row)
    for weight, bias in zip(model.cross.weights, model.cross.biases, strict=True):
        x = x0 * (weight.weight[0] @ x) + bias + x
    return model.output(torch.cat([x, perceptron(model.deep, x0)]))


def dcnv2(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    x = x0 = torch.cat(row)
    for layer in model.cross.layers:
        x = x0 * (layer.weight @ x + layer.bias) + x
    return perceptron(model.output, torch.cat([x, perceptron(model.deep, x0)]))


def xdeepfm(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    first, x0 = sum(v[-1] for v in row), [v[:-1] for v in row]
    below, pooled = x0, []
    for layer in model.interactions.layers:
        weight = layer.weight.view(-1, len(below), len(x0))
        above = []
        for h in range(len(weight)):
            products = sum(weight[h, i, j] * below[i] * x0[j] for i in range(len(below)) for j in range(len(x0)))
            above.append(products + layer.bias[h])
        pooled += [v.sum() for v in above]
        below = above
    return first + model.interaction_output(torch.stack(pooled)) + perceptron(model.deep, torch.cat(x0))


def autoint(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    x = torch.stack(row)
    for layer in model.attention:
        size = layer.queries.out_features // layer.heads
        heads = []
        for h in range(layer.heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = (x @ m.weight[part].T for m in (layer.queries, layer.keys, layer.values))
            score = torch.exp(q @ k.T / math.sqrt(size))
            heads.append(score / score.sum(1, keepdim=True) @ v)
        residual = x if isinstance(layer.residual, nn.Identity) else x @ layer.residual.weight.T
        y = torch.cat(heads, 1) + residual
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + layer.norm.eps) ** 0.5
        y = y * layer.norm.weight + layer.norm.bias
        x = y * (y > 0)
    return model.output(x.flatten())


def autoint_plus(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    return autoint(model, row, ids) + perceptron(model.deep, torch.cat(row))


def din(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    unit, table = model.units[0], model.vectors.table.weight
    q, pooled = table[ids[1]], torch.zeros(DIM, dtype=torch.float64)
    for i in ids[5:9]:
        if i > 0:
            k = table[i]
            x = torch.cat([q, k, q - k, q * k])
            for layer, activation in zip(unit.linears, unit.activations, strict=True):
                x = dice(activation, layer(x))
            pooled = pooled + unit.output(x) * k
    return perceptron(model.deep, torch.cat([*row[:3], pooled, *row[4:]]))


def finalmlp(model: Any, row: list[Tensor], ids: list[int]) -> Tensor:
    x = torch.cat(row)
    context = model.gate1.table.weight[ids[0] - 1 + 1]
    gate1, gate2 = (
        2 / (1 + torch.exp(-perceptron(model.gate1.layers, context))),
        2 * torch.sigmoid(model.gate2.constant),
    )
    a, b = perceptron(model.stream1, x * gate1), perceptron(model.stream2, x * gate2)
    wide, narrow = len(a) // model.heads, len(b) // model.heads
    fused = sum(
        a[h * wide : (h + 1) * wide] @ model.bilinear[h] @ b[h * narrow : (h + 1) * narrow] for h in range(model.heads)
    )
    return model.output1(a) + model.output2(b) + fused


def fgcnn(model: Any, row: list[Tensor], ids: list[int], image: list[Tensor]) -> Tensor:
    z, fields = torch.stack(image).unsqueeze(0), list(row)  # [channels, height, d]
    for block, recombination in zip(model.convolutions, model.recombinations, strict=True):
        convolution, norm = block[0], block[1]
        height = z.shape[1]
        padded = torch.cat([torch.zeros_like(z[:, :1]), z, torch.zeros_like(z[:, :1])], dim=1)
        maps = []
        for c in range(convolution.out_channels):
            rows = [
                sum((convolution.weight[c, :, t, 0, None] * padded[:, y + t]).sum(0) for t in range(3))
                + convolution.bias[c]
                for y in range(height)
            ]
            scale = norm.weight[c] / (norm.running_var[c] + norm.eps) ** 0.5
            maps.append(torch.tanh((torch.stack(rows) - norm.running_mean[c]) * scale + norm.bias[c]))
        image_ = torch.stack(maps)
        z = torch.stack([image_[:, y : y + 2].amax(dim=1) for y in range(0, height, 2)], dim=1)
        fields += list(torch.tanh(recombination(z.flatten())).view(-1, DIM))
    return perceptron(model.deep, torch.cat([*fields, torch.stack(pairs(fields))]))


def dlrm(model: Any, row: list[Tensor], ids: list[int], numbers: Tensor) -> Tensor:
    dense = perceptron(model.bottom, numbers)
    return perceptron(model.top, torch.cat([dense, torch.stack(pairs([dense, *row]))]))


PLAIN: dict[str, Callable[..., Tensor]] = {
    "lr": lr, "fm": fm, "dnn": dnn, "ipnn": ipnn, "deepfm": deepfm, "dcn": dcn, "dcnv2": dcnv2, "xdeepfm": xdeepfm,
    "autoint": autoint, "autoint+": autoint_plus, "din": din, "finalmlp": finalmlp, "fgcnn": fgcnn, "dlrm": dlrm,
}  # fmt: skip
SMALL = {"hidden": (8, 6)}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "lr": {}, "fm": {}, "autoint": {"width": 6}, "autoint+": {"width": 6, **SMALL},
    "xdeepfm": {"maps": (3, 2), **SMALL}, "din": {"attention": (5, 3), **SMALL}, "fgcnn": {"channels": (2, 3), **SMALL},
    "finalmlp": {"hidden1": (8,), "hidden2": (6,), "heads": 2, "context1": ("user",)},
}  # fmt: skip


def plain(name: str, model: Any, batch: Inputs) -> Tensor:
    rows, ids = fields_of(model.vectors, batch), batch["ids"].tolist()
    extra: list[Any] = [()] * len(rows)
    if name == "fgcnn":
        extra = [(image,) for image in fields_of(model.generation, batch)]
    if name == "dlrm":
        extra = [(numbers,) for numbers in batch["numeric"]]
    return torch.stack([PLAIN[name](model, r, i, *e).reshape(()) for r, i, e in zip(rows, ids, extra, strict=True)])


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
        "lr": (5_390, {}), "fm": (59_280, {}), "deepfm": (423_280, hidden), "dcnv2": (458_391, {**hidden, "cross_layers": 4}),
        "autoint+": (622_180, {**hidden, "layers": 5, "heads": 4, "width": 128}),
    }  # fmt: skip
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
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU,
    ]  # fmt: skip
    rows = zip(fields_of(model.vectors, batch), batch["numeric"], strict=True)
    expected = [perceptron(model.top, torch.cat([perceptron(model.bottom, n), *row])) for row, n in rows]
    assert torch.allclose(model(**batch), torch.stack(expected)[:, 0])


def test_finalmlp_gate_from_numbers_and_ids_and_streams_of_their_own() -> None:
    model = build(
        "finalmlp", hidden1=(8,), hidden2=(6,), heads=2, context1=("price", "user"), dropout=0.4, dropout2=0.1,
        batch_norm2=False,
    )  # fmt: skip
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
