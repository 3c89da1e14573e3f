"""What the decoder needs of a model, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Engine(Protocol):
    """What the decoder needs of a model."""

    batched: bool
    view: Any

    def new_cache(self, reserve: int = 0) -> Any:
        """Return the empty cache of one sequence."""

    def cut(self, cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens of a cache."""

    def reach(self, cache: Any) -> int | None:
        """Return how many tokens the next pass of a sequence may add; None where there is no bound."""

    def run(self, work: Sequence[tuple[Any, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Add new tokens to the caches; return logits (rows, vocabulary), or one row a sequence."""
