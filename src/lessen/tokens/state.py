"""What is known about the tokens of one forward of one tower, beside their features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lessen.errors import InputError
from lessen.tokens.rows import Plan, take


@dataclass(frozen=True)
class TokenState:
    """Sizes, provenance and layout of the current tokens. A new forward starts from a new state."""

    protected: int = 1
    """Leading tokens that are never merged or dropped: class token, distillation token, registers."""
    has_class: bool = True
    """Whether token 0 is a class token."""
    size: Tensor | None = None
    """float32 [B,N]: how many input tokens each token stands for; None means all 1."""
    group: Tensor | None = None
    """int64 [B,N0]: current index of each input token, -1 if it was dropped; None means the identity."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches, while they are still in image order."""

    def bias(self) -> Tensor | None:
        """Return log(size) as float32 [B,1,1,N], to be added to the logits of each key, or None while all are 1."""
        return None if self.size is None else self.size.log()[:, None, None, :]

    def apply(self, plan: Plan, x: Tensor, *, sizes: bool = True) -> tuple[Tensor, TokenState]:
        """Return the reduced features and the state that belongs to them. `sizes=False` leaves sizes unset."""
        reduced = plan.features(x, self.size)
        group = plan.row if self.group is None else follow(self.group, plan.row)
        size = plan.sizes(self.size) if sizes else None
        return reduced, replace(self, size=size, group=group, grid=None)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every input token the feature of the token it ended in: [B,N,C] to [B,N0,C].

        Raises:
            InputError: some input tokens were dropped, so that nothing stands for them.
        """
        if self.group is None:
            return y
        return take(y, self.group)

    def origins(self, index: int, tokens: int) -> Tensor:
        """Return the current token of each input token of image `index`, int64 [N0]."""
        return torch.arange(tokens) if self.group is None else self.group[index]


def follow(group: Tensor, row: Tensor) -> Tensor:
    """Compose the map of earlier steps with a new row map; dropped stays dropped."""
    return torch.where(group < 0, -1, row.gather(1, group.clamp(min=0)))


def require_nothing_dropped(drops: bool, what: str) -> None:
    """Raise InputError when a reduction that drops tokens is asked to restore them."""
    if drops:
        raise InputError(f"{what} drops tokens, so the full grid cannot be restored; merge or fuse instead")
