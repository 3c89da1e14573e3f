"""The equations of the click models spelled out with loops, and small models and batches to compare them on."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from lessen.data.columns import IdField, Layout
from lessen.stored.fields import Segment
from lessen.tasks.ctr.layers import Dice
from lessen.tasks.ctr.models import MODELS

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
    "lr": {},
    "fm": {},
    "autoint": {"width": 6},
    "autoint+": {"width": 6, **SMALL},
    "xdeepfm": {"maps": (3, 2), **SMALL},
    "din": {"attention": (5, 3), **SMALL},
    "fgcnn": {"channels": (2, 3), **SMALL},
    "finalmlp": {"hidden1": (8,), "hidden2": (6,), "heads": 2, "context1": ("user",)},
}


def plain(name: str, model: Any, batch: Inputs) -> Tensor:
    rows, ids = fields_of(model.vectors, batch), batch["ids"].tolist()
    extra: list[Any] = [()] * len(rows)
    if name == "fgcnn":
        extra = [(image,) for image in fields_of(model.generation, batch)]
    if name == "dlrm":
        extra = [(numbers,) for numbers in batch["numeric"]]
    return torch.stack([PLAIN[name](model, r, i, *e).reshape(()) for r, i, e in zip(rows, ids, extra, strict=True)])
