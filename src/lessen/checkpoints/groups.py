"""Which arrays of a checkpoint belong together: a weight with the moments an optimiser keeps for it.

Optimisers number parameters and do not name them, so a moment finds its weight by shape and order. A pairing that is
not the true one costs bytes, or prunes by the wrong moments under ExCP's rules; it never costs correctness.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lessen.checkpoints.images import Array, Image

FIRST = frozenset({"exp_avg", "momentum_buffer"})
SECOND = frozenset({"exp_avg_sq"})
FLOATS = frozenset({"F32", "BF16", "F16"})
_PIECE = 1 << 19
"""Elements coded at a time: bounds memory, and the arrays of one step stay in the processor's cache."""
_BUFFERS = frozenset({"running_mean", "running_var"})
_COPIES = re.compile(r"(^|[/._-])(best|ema|teacher|average|averaged|swa|shadow)([/._-]|$)", re.IGNORECASE)

Place = tuple[int, int]
"""Index of an image and of an array in it."""


@dataclass
class Group:
    """Arrays of one shape that are coded together, by role: `weight`, `first`, `second`, or `other` alone."""

    members: dict[str, Place] = field(default_factory=dict)
    near: bool = False
    """The weight may be rebuilt nearly; false for anything the optimiser does not move."""
    unsure: bool = field(default=False, compare=False)
    """There are more arrays of this shape than moments: which one the optimiser moves is not known."""


def find_groups(
    images: Sequence[Image], weights_alone: bool = False, still: Collection[Place] = frozenset()
) -> list[Group]:
    """Return the groups of a checkpoint, every array in exactly one of them.

    Where more arrays than moments have a shape (frozen layers, a second copy of the model), nothing of that shape is
    `near` until `still`, the arrays that did not move since the step before, tells them apart.

    Args:
        weights_alone: floating-point arrays outside optimiser state count as weights even without moments.
        still: arrays that are no weights, whatever their shape.
    """
    moments = _moments(images)
    taken: set[Place] = {place for roles in moments for place in roles.values()}
    candidates = [place for place in _in_model_order(images) if place not in taken and place not in still]
    unsure = _ambiguous(images, moments, candidates)
    groups = []
    for roles in moments:
        weight, certain = _weight_of(images, roles, candidates)
        if weight is not None:
            candidates.remove(weight)
            taken.add(weight)
            roles = {"weight": weight, **roles}
        doubtful = not certain and _shape(images, roles) in unsure
        groups.append(Group(roles, weight is not None and not doubtful and _narrow(images, roles), doubtful))
    if weights_alone:
        groups += [Group({"weight": place}, near=True) for place in candidates]
        taken.update(candidates)
    for i, image in enumerate(images):
        groups += [Group({"other": (i, j)}) for j in range(len(image.arrays)) if (i, j) not in taken]
    return groups


def _shape(images: Sequence[Image], roles: dict[str, Place]) -> tuple[int, ...]:
    return _at(images, next(iter(roles.values()))).shape


def _ambiguous(
    images: Sequence[Image], moments: Sequence[dict[str, Place]], candidates: Sequence[Place]
) -> set[tuple[int, ...]]:
    """Return the shapes of which there are more possible weights than parameters with moments."""
    wanted = Counter(_shape(images, roles) for roles in moments)
    offered = Counter(_at(images, place).shape for place in candidates)
    return {shape for shape, count in wanted.items() if offered[shape] > count}


def _weight_of(
    images: Sequence[Image], roles: dict[str, Place], candidates: Sequence[Place]
) -> tuple[Place | None, bool]:
    """Return the weight that moments belong to, by name where the optimiser knows names, else the next of the shape.

    The second value says whether it was found by name.
    """
    moment = _at(images, next(iter(roles.values())))
    fitting = [place for place in candidates if _at(images, place).shape == moment.shape]
    owner = split_name(moment.name)[0].rpartition("/")[2]
    named = [place for place in fitting if _at(images, place).name.rpartition("/")[2] == owner]
    return next(iter(named or fitting), None), bool(named)


def split_name(name: str) -> tuple[str, str]:
    """Split `optimizer/state/3/exp_avg` or `optimizer/3.exp_avg` before the last part."""
    cut = max(name.rfind("/"), name.rfind("."))
    return name[: max(cut, 0)], name[cut + 1 :]


def in_optimizer(name: str) -> bool:
    """Say whether an array is optimiser state by where it is in the checkpoint."""
    return name.startswith("optim") or "/state/" in f"/{name}" or split_name(name)[1] in FIRST | SECOND


def _at(images: Sequence[Image], place: Place) -> Array:
    return images[place[0]].arrays[place[1]]


def _narrow(images: Sequence[Image], roles: dict[str, Place]) -> bool:
    return all(_at(images, place).kind in FLOATS for place in roles.values())


def _moments(images: Sequence[Image]) -> list[dict[str, Place]]:
    """Return for each parameter of each optimiser where its moments are, parameters in order."""
    found: dict[tuple[int, str], dict[str, Place]] = {}
    for i, image in enumerate(images):
        for j, array in enumerate(image.arrays):
            owner, leaf = split_name(array.name)
            role = "first" if leaf in FIRST else "second" if leaf in SECOND else None
            if leaf in ("first", "second") and array.name.startswith("optim"):  # lessen.train.tables.LazyAdam
                role = leaf
            if role is not None:
                found.setdefault((i, owner), {})[role] = (i, j)
    ordered = [found[key] for key in sorted(found, key=lambda key: (key[0], natural(key[1])))]
    return [roles for roles in ordered if len({_at(images, place).shape for place in roles.values()}) == 1]


def _in_model_order(images: Sequence[Image]) -> list[Place]:
    """Return the places of what may be weights, without known buffers and copies of the model (best, EMA)."""
    places = [
        (i, j)
        for i, image in enumerate(images)
        for j, array in enumerate(image.arrays)
        if array.kind in FLOATS and not in_optimizer(array.name)
        if split_name(array.name)[1] not in _BUFFERS and not _COPIES.search(f"{image.path}/{array.name}")
    ]

    def rank(place: Place) -> tuple[int, list[tuple[int, int | str]]]:
        image, array = images[place[0]], _at(images, place)
        # safetensors sorts names; torch keeps the order of the model, which offsets reproduce
        sorts = image.container == "safetensors"
        order: list[tuple[int, int | str]] = natural(array.name) if sorts else [(0, place[1])]
        return place[0], order

    return sorted(places, key=rank)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key under which layer 2 comes before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def pieces(shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut an array into (first element, rows, columns) of about half a million elements each."""
    count = 1
    for size in shape:
        count *= size
    columns = count // shape[0] if len(shape) > 1 and shape[0] else count
    if len(shape) > 1 and 0 < columns <= _PIECE:
        rows = max(1, _PIECE // columns)
        return [(start * columns, min(rows, shape[0] - start), columns) for start in range(0, shape[0], rows)]
    return [(start, 1, min(_PIECE, count - start)) for start in range(0, count, _PIECE)]
