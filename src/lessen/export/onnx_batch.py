"""A batch for an exported graph: which inputs have one row an example, and which are bags given by offsets.

An input called `offsets` or `..._offsets` says where the bags of the flat ids begin that stand right before it:

    {"dense": [B,13], "ids": [n], "offsets": [B]}      or offsets [B+1], whose last is n

Weights of the ids (`nn.EmbeddingBag`'s `per_sample_weights`) stand after the offsets and are as long as the ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Group:
    """The inputs of one table's bags, by name."""

    ids: str
    offsets: str
    weights: str | None
    last: bool
    """Whether the last offset is the end of the last bag."""


def groups_of(inputs: Inputs) -> list[Group]:
    """Return the inputs that are bags given by offsets."""
    names = list(inputs)
    pairs = {
        ids: offsets
        for ids, offsets in itertools.pairwise(names)
        if is_offsets(offsets, inputs[offsets]) and inputs[ids].dim() == 1
    }
    weights = {ids: _weights(inputs, names, ids, offsets) for ids, offsets in pairs.items()}
    bagged = {*pairs, *pairs.values(), *filter(None, weights.values())}
    rows = {len(value) for name, value in inputs.items() if name not in bagged}
    return [
        Group(ids, offsets, weights[ids], _ends(inputs[ids], inputs[offsets], rows)) for ids, offsets in pairs.items()
    ]


def _weights(inputs: Inputs, names: list[str], ids: str, offsets: str) -> str | None:
    """Return the input behind the offsets that weighs the ids, if there is one."""
    after = names.index(offsets) + 1
    if after == len(names) or inputs[names[after]].shape != inputs[ids].shape:
        return None
    return names[after] if inputs[names[after]].is_floating_point() else None


def _ends(ids: Tensor, offsets: Tensor, rows: set[int]) -> bool:
    """Tell whether the last offset is an end: if all inputs of one row an example have one row fewer."""
    return rows == {len(offsets) - 1} and int(offsets[-1]) == len(ids)


def is_offsets(name: str, value: Tensor) -> bool:
    """Tell whether an input is where bags begin: by its name, and because it begins at 0 and never falls."""
    named = name == "offsets" or name.endswith(("_offsets", ".offsets"))
    whole = value.dim() == 1 and value.dtype in (torch.int32, torch.int64) and len(value) > 0
    return named and whole and int(value[0]) == 0 and bool((value[1:] >= value[:-1]).all())


def examples(inputs: Inputs) -> int:
    """Return how many examples a batch has."""
    groups = groups_of(inputs)
    if groups:
        return len(inputs[groups[0].offsets]) - groups[0].last
    return len(next(iter(inputs.values())))


def first_examples(inputs: Inputs, rows: int) -> dict[str, Tensor]:
    """Return the first `rows` examples, repeated where there are fewer."""
    count = examples(inputs)
    chosen = torch.arange(rows) % count
    made: dict[str, Tensor] = {}
    bagged = {name: group for group in groups_of(inputs) for name in (group.ids, group.offsets, group.weights) if name}
    for name, value in inputs.items():
        if name not in bagged:
            made[name] = value[chosen]
            continue
        group = bagged[name]
        offsets = inputs[group.offsets].long()
        ends = offsets[1:] if group.last else torch.cat([offsets[1:], torch.tensor([len(inputs[group.ids])])])
        starts = (offsets[:-1] if group.last else offsets)[chosen]
        lengths = ends[chosen] - starts
        if name == group.offsets:
            after = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            made[name] = (after if group.last else after[:-1]).to(value.dtype)
        else:
            own = [torch.arange(int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True)]
            made[name] = value[torch.cat(own)]
    return made


def dimensions(inputs: Inputs) -> dict[str, dict[int, object]]:
    """Return torch.export's free axes of each input: the examples, and for every group of bags its ids."""
    batch = torch.export.Dim("batch", min=1)
    free: dict[str, dict[int, object]] = {name: {0: batch} for name in inputs}
    for number, group in enumerate(groups_of(inputs)):
        own: dict[int, object] = {0: torch.export.Dim(f"ids_{number}", min=1)}
        free |= {name: own for name in (group.ids, group.weights) if name}
        if group.last:
            free[group.offsets] = {0: batch + 1}
    return free
