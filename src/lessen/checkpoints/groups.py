"""Which arrays of a checkpoint belong together: a weight with the moments an optimiser keeps for it.

Optimisers number parameters and do not name them, so a moment finds its weight by shape and order. A pairing that is
not the true one costs bytes, or prunes by the wrong moments under ExCP's rules; it never costs correctness: what may
change in mode near is only what an optimiser has state for and what was seen to move (`Movement`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lessen.checkpoints.byte_map import Array, ByteMap

FIRST = frozenset({"exp_avg", "momentum_buffer"})
SECOND = frozenset({"exp_avg_sq"})
_LIKE_WEIGHT = frozenset({
    "sum", "square_avg", "acc_delta", "grad_avg", "exp_inf", "prev", "step_size", "variance", "max_exp_avg_sq",
    "momentum", "ax",
})  # fmt: skip
"""State of other optimisers (Adagrad, RMSprop, Adadelta, Adamax, Rprop, Adafactor, ASGD) with the shape of its weight:
it says which weight is trained, and is kept exactly, since unlike Adam's moments it may never be renewed."""
_FACTORS = (("exp_avg_sq_row", "exp_avg_sq_col"), ("row_var", "col_var"))
"""Adafactor's second moment, of Hugging Face and of torch, by row and column."""
FLOATS = frozenset({"F32", "BF16", "F16"})
_PIECE = 1 << 19
"""Elements coded at a time: bounds memory, and the arrays of one step stay in the processor's cache."""
_SMALL = 4096
"""Other arrays below this many bytes are kept with the structure of the file: they come and go (scores, counters)."""
_BUFFERS = re.compile(r"running_\w+|moving_\w+|ema_\w+|\w+_ema|cluster_size|embed_avg|queue\w*|inv_freq|(min|max)_val")
_COPIES = re.compile(r"(^|[/._-])(best|ema|teacher|average|averaged|swa|shadow)([/._-]|$)", re.IGNORECASE)

_OPTIMIZER = re.compile(r"(^|[/.])optim(izer)?s?(?=[/_.\dA-Z]|$)")
_MASTERS = re.compile(r"fp32|master_param")
"""Names of the full-precision weights that a trainer of half precision keeps with its optimiser."""

Place = tuple[int, int]
"""Index of a byte map and of an array in it."""


@dataclass
class Group:
    """Arrays of one shape that are coded together, by role: `weight`, `first`, `second`, or `other` alone."""

    members: dict[str, Place] = field(default_factory=dict)
    near: bool = False
    """The weight may be rebuilt nearly; false for anything the optimiser does not move."""


class Movement(Protocol):
    """What is known from the step before."""

    def trusts(self, place: Place) -> bool:
        """Say whether an array was a weight that moves already."""

    def moved(self, place: Place) -> bool:
        """Say whether an array is known to differ from the step before."""

    def is_loose(self, place: Place) -> bool:
        """Say whether an array, if it is no weight or moment, is one that comes and goes or changes its shape."""


@dataclass(frozen=True)
class _Parameter:
    """What an optimiser keeps for one parameter: the shape of its weight, and the moments that are coded with it."""

    shape: tuple[int, ...]
    owner: str
    roles: dict[str, Place]


def find_groups(maps: Sequence[ByteMap], weights_alone: bool = False, movement: Movement | None = None) -> list[Group]:
    """Return the groups of a checkpoint, every array in one of them or, if it is small or loose, in none.

    A weight is `near` at the first step if every parameter of its shape has exactly one array that could be it; at
    later steps if it was near before, or moved and is told by that from frozen arrays and buffers of the same shape.

    Args:
        weights_alone: floating-point arrays outside optimiser state that move count as weights even without moments.
        movement: what is known from the step before; None at the first step.
    """
    parameters = _parameters(maps)
    taken = {place for parameter in parameters for place in parameter.roles.values()}
    pairing = _Pairing(maps, parameters, [place for place in _in_model_order(maps) if place not in taken], movement)
    groups = []
    for parameter in parameters:
        weight, sure = pairing.weight_of(parameter)
        members = dict(parameter.roles) if weight is None else {"weight": weight, **parameter.roles}
        if members:
            groups.append(Group(members, sure and all(_at(maps, place).kind in FLOATS for place in members.values())))
        taken.update(members.values())
    if weights_alone:
        alone = [place for place in pairing.left if movement is None or not movement.is_loose(place)]
        groups += [Group({"weight": place}, pairing.moves(place)) for place in alone]
        taken.update(alone)
    for i, mapped in enumerate(maps):
        for j, array in enumerate(mapped.arrays):
            loose = array.nbytes < _SMALL or (movement is not None and movement.is_loose((i, j)))
            if (i, j) not in taken and not loose:
                groups.append(Group({"other": (i, j)}))
    return groups


class _Pairing:
    """Finds the weight of each parameter among the arrays that may be one, each used once."""

    def __init__(
        self,
        maps: Sequence[ByteMap],
        parameters: Sequence[_Parameter],
        candidates: list[Place],
        movement: Movement | None,
    ) -> None:
        self.maps, self.movement = maps, movement
        self.left = candidates
        wanted = Counter(parameter.shape for parameter in parameters)
        self._fitting: dict[tuple[int, ...], list[Place]] = {}
        self._unsure: set[tuple[int, ...]] = set()
        for shape, count in wanted.items():
            fitting = [place for place in candidates if _at(maps, place).shape == shape]
            if len(fitting) != count and movement is not None:
                trusted = [place for place in fitting if movement.trusts(place)]
                fitting = trusted if len(trusted) >= count else [p for p in fitting if p in trusted or self.moves(p)]
            if len(fitting) != count:
                self._unsure.add(shape)
            self._fitting[shape] = fitting or [place for place in candidates if _at(maps, place).shape == shape]

    def moves(self, place: Place) -> bool:
        """Say whether an array is known to be moved by the training."""
        return self.movement is not None and (self.movement.trusts(place) or self.movement.moved(place))

    def weight_of(self, parameter: _Parameter) -> tuple[Place | None, bool]:
        """Return the weight, by name where the optimiser knows names, else the next of its shape; and its `near`."""
        fitting = [place for place in self._fitting[parameter.shape] if place in self.left]
        named = [place for place in fitting if _at(self.maps, place).name.rpartition("/")[2] == parameter.owner]
        weight = next(iter(named or fitting), None)
        if weight is None:
            return None, False
        self.left.remove(weight)
        sure = bool(named) or parameter.shape not in self._unsure
        return weight, sure and (self.movement is None or self.moves(weight))


def split_name(name: str) -> tuple[str, str]:
    """Split `optimizer/state/3/exp_avg` or `optimizer/3.exp_avg` before the last part."""
    cut = max(name.rfind("/"), name.rfind("."))
    return name[: max(cut, 0)], name[cut + 1 :]


def in_optimizer(name: str) -> bool:
    """Say whether an array is optimiser state by where it is in the checkpoint."""
    return "/state/" in f"/{name}" or _OPTIMIZER.search(name) is not None


def _at(maps: Sequence[ByteMap], place: Place) -> Array:
    return maps[place[0]].arrays[place[1]]


def _parameters(maps: Sequence[ByteMap]) -> list[_Parameter]:
    """Return what each optimiser keeps for each parameter, parameters in order."""
    found: dict[tuple[int, str], dict[str, Place]] = {}
    for i, mapped in enumerate(maps):
        for j, array in enumerate(mapped.arrays):
            owner, leaf = split_name(array.name)
            if in_optimizer(array.name):
                found.setdefault((i, owner), {})[leaf] = (i, j)
    ordered = sorted(found, key=lambda key: (key[0], natural(key[1])))
    made = [_parameter(maps, key[1].rpartition("/")[2], found[key]) for key in ordered]
    return [parameter for parameter in made if parameter is not None]


def _parameter(maps: Sequence[ByteMap], owner: str, leaves: dict[str, Place]) -> _Parameter | None:
    roles: dict[str, Place] = {}
    for leaf, place in leaves.items():
        if leaf in FIRST or leaf == "first":  # first and second: lessen.train.tables.LazyAdam
            roles["first"] = place
        elif leaf in SECOND or leaf == "second":
            roles["second"] = place
    shapes = {_at(maps, place).shape for place in roles.values()}
    if len(shapes) == 1:
        return _Parameter(shapes.pop(), owner, roles)
    like = {_at(maps, place).shape for leaf, place in leaves.items() if leaf in _LIKE_WEIGHT}
    like |= {
        _outer(_at(maps, leaves[row]).shape, _at(maps, leaves[column]).shape)
        for row, column in _FACTORS
        if row in leaves and column in leaves
    }
    return _Parameter(like.pop(), owner, {}) if len(like) == 1 else None


def _outer(row: tuple[int, ...], column: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a weight whose second moment is kept by row [..., r] or [..., r, 1] and by column."""
    return (*row[:-1], column[-1]) if row[-1:] == (1,) and len(row) == len(column) else (*row, *column[-1:])


def _in_model_order(maps: Sequence[ByteMap]) -> list[Place]:
    """Return the places of what may be weights, without known buffers and copies of the model (best, EMA)."""
    places = [
        (i, j)
        for i, mapped in enumerate(maps)
        for j, array in enumerate(mapped.arrays)
        if array.kind in FLOATS and (not in_optimizer(array.name) or _MASTERS.search(array.name))
        if not _BUFFERS.fullmatch(split_name(array.name)[1]) and not _COPIES.search(array.name)
    ]

    def rank(place: Place) -> tuple[int, list[tuple[int, int | str]]]:
        mapped, array = maps[place[0]], _at(maps, place)
        # these sort names or store in any order; torch keeps the order of the model, which offsets reproduce
        sorts = mapped.container in ("safetensors", "distributed")
        order: list[tuple[int, int | str]] = natural(array.name) if sorts else [(0, place[1])]
        return place[0], order

    return sorted(places, key=rank)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key under which layer 2 comes before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def pieces(shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut an array into (first element, rows, columns) of about half a million elements each."""
    rows, columns = _cut(shape)
    if rows:
        return [(start * columns, min(rows, shape[0] - start), columns) for start in range(0, shape[0], rows)]
    count = math.prod(shape)
    return [(start, 1, min(_PIECE, count - start)) for start in range(0, count, _PIECE)]


def count_pieces(shape: Sequence[int]) -> int:
    """Return how many pieces there are, without making them."""
    rows, _ = _cut(shape)
    return -(-shape[0] // rows) if rows else -(-math.prod(shape) // _PIECE)


def _cut(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows of a piece and its columns; no rows where an array is cut by elements."""
    columns = math.prod(shape[1:])
    by_rows = len(shape) > 1 and shape[0] > 0 and 0 < columns <= _PIECE
    return (max(1, _PIECE // columns), columns) if by_rows else (0, 0)
