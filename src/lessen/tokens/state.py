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
    """float32 [B,N]: how many input tokens each token stands for, without gradient; None means all 1."""
    rows: tuple[Tensor, ...] = ()
    """Row maps of the reductions so far, int64 [B,N_before] each; composed only when somebody asks for `group`."""
    count: int | None = None
    """Tokens there are now; None before the first reduction."""

    @property
    def group(self) -> Tensor | None:
        """Current index of each input token, int64 [B,N0], -1 if it was dropped; None means the identity."""
        if not self.rows:
            return None
        group = self.rows[0]
        for row in self.rows[1:]:
            group = follow(group, row)
        return group

    def bias(self) -> Tensor | None:
        """Return log(size) as float32 [B,1,1,N], to be added to the logits of each key, or None while all are 1."""
        return None if self.size is None else self.size.log()[:, None, None, :]

    def apply(self, plan: Plan, x: Tensor, *, sizes: bool = True) -> tuple[Tensor, TokenState]:
        """Return the reduced features and the state that belongs to them. `sizes=False` leaves sizes unset."""
        reduced, size = plan.reduce(x, self.size)
        return reduced, replace(self, size=size if sizes else None, rows=(*self.rows, plan.row), count=plan.kept)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every input token the feature of the token it ended in: [B,N,C] to [B,N0,C].

        Raises:
            InputError: some input tokens were dropped, so that nothing stands for them.
        """
        group = self.group
        return y if group is None else take(y, group)

    def settled(self) -> TokenState:
        """Return the state with its row maps composed into one, so that restoring block after block stays linear."""
        group = self.group
        return self if group is None else replace(self, rows=(group,))

    def merge_again(self, y: Tensor) -> Tensor:
        """Take back `unmerge`: [B,N0,C] to [B,N,C]; every member of a group holds the group's feature."""
        group = self.group
        return y if group is None or self.count is None else take(y, Plan(group, self.count).first_members())


def follow(group: Tensor, row: Tensor) -> Tensor:
    """Compose the map of earlier steps with a new row map; dropped stays dropped."""
    return torch.where(group < 0, -1, row.gather(1, group.clamp(min=0)))


def require_nothing_dropped(drops: bool, what: str) -> None:
    """Raise InputError when a reduction that drops tokens is asked to restore them."""
    if drops:
        raise InputError(f"{what} drops tokens, so the full grid cannot be restored; merge or fuse instead")
