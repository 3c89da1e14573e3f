"""A new encoder that searches the old index: queries are turned to where the old encoder would have put them.

Two encoders of one kind differ mostly by a turn of space. From a few thousand texts that both have read, X (new) and Y
(old), float [n, d],

    turn    R = U V^T of the singular values of X^T Y: the best orthogonal map (Schoenemann 1966), or, where widths
            differ, the best with orthonormal rows or columns
    rest    the r directions that explain most of Y - X R, by ridge regression of reduced rank (Izenman 1975)

both in closed form; the ridge is the one, of a short list, that leaves the least error on pairs left out. Drift-Adapter
(EMNLP 2025) fits such maps by gradient descent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.errors import ArtifactError, DataError, NonFiniteError
from lessen.files import atomic_write, canonical, parse_json, read_checked
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, in shares of the mean square of a direction."""
LEFT_OUT = 0.2


@stored
class QueryAdapter(StoredModule):
    """State, float32: `turn` [new, old], `left` [new, rank], `right` [rank, old], `shift` [old]."""

    kind = "query-adapter"
    turn: Tensor
    left: Tensor
    right: Tensor
    shift: Tensor

    def __init__(self, new: int, old: int, rank: int) -> None:
        super().__init__()
        self.new, self.old = checks.whole("new", new, 1, 2**16), checks.whole("old", old, 1, 2**16)
        self.rank = checks.whole("rank", rank, 0, min(self.new, self.old))
        self.register_buffer("turn", torch.zeros(self.new, self.old))
        self.register_buffer("left", torch.zeros(self.new, self.rank))
        self.register_buffer("right", torch.zeros(self.rank, self.old))
        self.register_buffer("shift", torch.zeros(self.old))

    @classmethod
    def fitted(cls, new: Tensor, old: Tensor, rank: int | None = None, seed: int = 0) -> QueryAdapter:
        """Return the adapter of pairs of vectors of the same texts, float [n, new] and [n, old].

        Args:
            rank: directions of the rest; None takes a quarter of the narrower width.

        Raises:
            DataError: there are too few pairs, or they do not belong together. NonFiniteError: NaN or infinity.
        """
        if new.dim() != 2 or old.dim() != 2 or len(new) != len(old):
            raise DataError(f"pairs of shapes {list(new.shape)} and {list(old.shape)} do not belong together")
        if len(new) < 20:
            raise DataError(f"{len(new)} pairs are too few to fit an adapter; give at least 20, better a few thousand")
        if not bool(new.isfinite().all() and old.isfinite().all()):
            raise NonFiniteError("pairs for the adapter hold NaN or infinity")
        x, y = new.double(), old.double()
        rank = min(x.shape[1], y.shape[1]) // 4 if rank is None else rank
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        left_out, kept = order.tensor_split([max(2, int(LEFT_OUT * len(x)))])
        errors = []
        for ridge in RIDGES:
            maps = _maps(x[kept], y[kept], rank, ridge)
            errors.append(float((_mapped(x[left_out], *maps) - y[left_out]).square().sum()))
        made = cls(x.shape[1], y.shape[1], rank)
        chosen = _maps(x, y, rank, RIDGES[errors.index(min(errors))])
        for name, value in zip(("turn", "left", "right", "shift"), chosen, strict=True):
            getattr(made, name).copy_(value)
        return made

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"new": self.new, "old": self.old, "rank": self.rank}

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors of the new encoder, float [n, new], as the old one would have put them, float32 [n, old]."""
        return _mapped(vectors.float(), self.turn, self.left, self.right, self.shift)

    def save(self, path: Path, new: dict[str, Any] | None, old: dict[str, Any] | None) -> None:
        """Write the adapter to one safetensors file, with the encoders it leads from and to. Raises OutputError."""
        from safetensors.torch import save

        said = canonical({"kind": self.kind, "config": self.config(), "new": new, "old": old}).decode()
        atomic_write(path, save(dict(self.state_dict()), metadata={"lessen": said}))

    @classmethod
    def load(cls, path: Path) -> tuple[QueryAdapter, dict[str, Any] | None, dict[str, Any] | None]:
        """Return the adapter of a file, and the encoders it leads from and to. Raises ArtifactError."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load

        raw = read_checked(path)
        try:
            with safe_open(path, "pt") as file:
                said = parse_json((file.metadata() or {}).get("lessen", ""), str(path))
            made = cls(**said["config"])
            made.load_state_dict(load(raw))
            made.check()
            return made, said["new"], said["old"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path} is no adapter: {str(error).splitlines()[0]}") from error


def _mapped(x: Tensor, turn: Tensor, left: Tensor, right: Tensor, shift: Tensor) -> Tensor:
    return x @ turn + (x @ left) @ right + shift


def _maps(x: Tensor, y: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return turn, left, right and shift of pairs, float64."""
    u, _, v = torch.linalg.svd(x.t() @ y, full_matrices=False)
    turn = u @ v
    rest = y - x @ turn
    middle, shift = x.mean(dim=0), rest.mean(dim=0)
    near, far = x - middle, rest - shift
    squares = near.t() @ near
    squares = squares + ridge * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype)
    full = torch.linalg.solve(squares, near.t() @ far)
    directions = torch.linalg.svd(near @ full, full_matrices=False)[2][:rank]
    left = full @ directions.t()
    return turn, left, directions, shift - (middle @ left) @ directions
