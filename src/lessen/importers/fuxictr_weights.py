"""Moving the weights of a FuxiCTR checkpoint into a lessen model: names, order of fields, first-order columns.

their vectors [f_1 .. f_n in the order of the map] -> our vectors [categorical .. sequence .. numeric]
    columns of the first Linear, of crosses and of the output follow the same permutation; of pairs, both sides do
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.models import MODELS

TABLES = "embedding_layer.embedding_layer.embedding_layers."
WITH_FIRST_ORDER = ("lr", "fm", "deepfm", "xdeepfm")

State = Mapping[str, Tensor]


class Names:
    """What FuxiCTR calls the parts of each model: the MLP, the first-order layer, and whether that has the bias."""

    tower = {
        "dnn": "mlp.mlp.",
        "ipnn": "dnn.mlp.",
        "deepfm": "mlp.mlp.",
        "dcn": "dnn.mlp.",
        "dcnv2": "parallel_dnn.mlp.",
        "xdeepfm": "dnn.mlp.",
    }
    first_order = {"lr": "lr_layer.", "fm": "fm.lr_layer.", "deepfm": "fm.lr_layer.", "xdeepfm": "lr_layer."}
    known = ("lr", "fm", "dnn", "ipnn", "deepfm", "dcn", "dcnv2", "xdeepfm")


def first_order_tables(model: str) -> str:
    """Return the prefix of the width-1 tables of a model."""
    return f"{Names.first_order[model]}embedding_layer.{TABLES.removeprefix('embedding_layer.')}"


def build(model: str, layout: Layout, state: State, order: Sequence[int]) -> nn.Module:
    """Return the lessen model with the weights of `state`.

    Args:
        order: for each of our field vectors, its place among theirs.

    Raises:
        KeyError, RuntimeError, ValueError: tensors are missing or do not fit.
    """
    prefixes = [] if model == "lr" else [TABLES]
    if model in WITH_FIRST_ORDER:
        prefixes.append(first_order_tables(model))
    rows = {segment.name: _rows(state, prefixes, segment.name) for segment in layout.segments}
    width = next(iter(rows.values())).shape[1]
    dim = width - 1 if model in WITH_FIRST_ORDER and model != "lr" else width
    tower = Tower(state, Names.tower[model]) if model in Names.tower else None
    made: Any = MODELS[model](layout, dim, **_arguments(model, state, tower))  # type: ignore[index]
    permutation = Permutation(order, dim)
    with torch.no_grad():
        for segment in layout.segments:
            target = made.vectors.table.weight[segment.start : segment.start + segment.rows]
            target.copy_(_fitting(rows[segment.name], target.shape, segment.name))
        for number, name in enumerate(layout.numeric):
            made.vectors.values[number] = torch.cat([state[f"{p}{name}.weight"][:, 0] for p in prefixes])
        if tower is not None:
            tower.copy(made.deep, PRODUCTS.get(model, Permutation.columns)(permutation))
        FILLERS.get(model, _nothing)(made, state, permutation)
    return made  # type: ignore[no-any-return]


def _rows(state: State, prefixes: Sequence[str], name: str) -> Tensor:
    """Return the rows of a field, out of vocabulary first: last there, first here; row 0 is padding."""
    joined = torch.cat([state[f"{prefix}{name}.weight"] for prefix in prefixes], dim=1)
    return torch.cat([joined[-1:], joined[1:-1]])


def _fitting(rows: Tensor, shape: Sequence[int], name: str) -> Tensor:
    if rows.shape != torch.Size(shape):
        raise ValueError(f"the table of {name!r} has shape {list(rows.shape)}, the feature map asks for {list(shape)}")
    return rows


def _arguments(model: str, state: State, tower: Tower | None) -> dict[str, Any]:
    """Return the sizes of a model as its tensors tell them."""
    given: dict[str, Any] = {}
    if tower is not None:
        hidden = [len(layer["weight"]) for layer in tower.linears]
        own_output = model in ("dcn", "dcnv2")
        given = {"hidden": hidden if own_output else hidden[:-1], "dropout": 0.0, "batch_norm": bool(tower.norms)}
    if model == "dcn":
        given["cross_layers"] = sum(key.endswith(".weight.weight") for key in state if "crossnet.cross_net." in key)
    elif model == "dcnv2":
        layers = "crossnet.cross_layers."
        given["cross_layers"] = sum(key.startswith(layers) and key.endswith(".weight") for key in state)
    elif model == "xdeepfm":
        names = [key for key in state if key.startswith("cin.cin_layer.") and key.endswith(".weight")]
        given["maps"] = [len(state[f"cin.cin_layer.layer_{n + 1}.weight"]) for n in range(len(names))]
    return given


class Permutation:
    """The order of our fields among theirs, and what follows from it."""

    def __init__(self, order: Sequence[int], dim: int) -> None:
        self.fields, self.dim = torch.tensor(order), dim

    def columns(self) -> Tensor:
        """Return for each of our flattened inputs [fields * d] its place among theirs."""
        return (self.fields.unsqueeze(1) * self.dim + torch.arange(self.dim)).flatten()

    def with_products(self) -> Tensor:
        """Return the same for inputs followed by the products of all pairs i < j, row by row."""
        count = len(self.fields)
        left, right = torch.triu_indices(count, count, 1)
        number = torch.zeros(count, count, dtype=torch.int64)
        number[left, right] = torch.arange(len(left))
        mine, other = self.fields[left], self.fields[right]
        pairs = number[torch.minimum(mine, other), torch.maximum(mine, other)]
        return torch.cat([self.columns(), count * self.dim + pairs])


class Tower:
    """The numbered layers of an MLP: Linear ones, and BatchNorm ones, in order."""

    def __init__(self, state: State, prefix: str) -> None:
        layers: dict[int, dict[str, Tensor]] = {}
        for key, value in part(state, prefix).items():
            number, _, name = key.partition(".")
            layers.setdefault(int(number), {})[name] = value
        ordered = [layers[number] for number in sorted(layers)]
        self.linears = [layer for layer in ordered if "running_mean" not in layer]
        self.norms = [layer for layer in ordered if "running_mean" in layer]
        if not self.linears:
            raise KeyError(f"{prefix}0.weight")

    def copy(self, target: nn.Sequential, columns: Tensor) -> None:
        """Copy the layers into an MLP of the same shape; `columns` orders the inputs of the first."""
        first = {**self.linears[0], "weight": self.linears[0]["weight"][:, columns]}
        for kind, layers in ((nn.Linear, [first, *self.linears[1:]]), (nn.BatchNorm1d, self.norms)):
            mine = [module for module in target if isinstance(module, kind)]
            for module, layer in zip(mine, layers, strict=True):
                module.load_state_dict(layer)


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a name."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _nothing(made: Any, state: State, permutation: Permutation) -> None:
    """Some models are a table and an MLP."""


def _fill_bias(made: Any, state: State, permutation: Permutation) -> None:  # noqa: ARG001 - same call for all
    made.bias.copy_(state["lr_layer.bias" if "lr_layer.bias" in state else "fm.lr_layer.bias"])


def _fill_deepfm(made: Any, state: State, permutation: Permutation) -> None:  # noqa: ARG001
    made.deep[-1].bias.add_(state["fm.lr_layer.bias"])


def _fill_dcn(made: Any, state: State, permutation: Permutation) -> None:
    columns = permutation.columns()
    for number, weight in enumerate(made.cross.weights):
        weight.weight.copy_(state[f"crossnet.cross_net.{number}.weight.weight"][:, columns])
        made.cross.biases[number].copy_(state[f"crossnet.cross_net.{number}.bias"][columns])
    _fill_output(made.output, state, columns)


def _fill_dcnv2(made: Any, state: State, permutation: Permutation) -> None:
    columns = permutation.columns()
    for number, layer in enumerate(made.cross.layers):
        weight = state[f"crossnet.cross_layers.{number}.weight"]
        layer.weight.copy_(weight[columns][:, columns])
        layer.bias.copy_(state[f"crossnet.cross_layers.{number}.bias"][columns])
    _fill_output(made.output[0], state, columns)


def _fill_output(output: nn.Linear, state: State, columns: Tensor) -> None:
    """Fill the last layer, which reads the crosses and then the MLP."""
    rest = torch.arange(len(columns), state["fc.weight"].shape[1])
    output.load_state_dict({"weight": state["fc.weight"][:, torch.cat([columns, rest])], "bias": state["fc.bias"]})


def _fill_xdeepfm(made: Any, state: State, permutation: Permutation) -> None:
    fields = permutation.fields
    for number, layer in enumerate(made.interactions.layers):
        maps = state[f"cin.cin_layer.layer_{number + 1}.weight"][..., 0]
        maps = maps.reshape(len(maps), len(fields), -1)
        maps = maps[:, fields]  # theirs: fields first, maps below second
        maps = maps[:, :, fields] if number == 0 else maps
        layer.weight.copy_(maps.transpose(1, 2).flatten(1))
        layer.bias.copy_(state[f"cin.cin_layer.layer_{number + 1}.bias"])
    made.interaction_output.load_state_dict(part(state, "cin.fc."))


PRODUCTS: dict[str, Callable[[Permutation], Tensor]] = {"ipnn": Permutation.with_products}
FILLERS: dict[str, Callable[[Any, State, Permutation], None]] = {
    "lr": _fill_bias,
    "fm": _fill_bias,
    "deepfm": _fill_deepfm,
    "dcn": _fill_dcn,
    "dcnv2": _fill_dcnv2,
    "xdeepfm": _fill_xdeepfm,
}
