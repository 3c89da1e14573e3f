"""What is known about the tokens of one forward of one tower, beside their features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lessen.architectures.tower_block import Positions
from lessen.errors import InputError
from lessen.tokens.arguments import Handed
from lessen.tokens.rows import Plan, combine, take

NOBODY = 1e-30
"""Size of a padding token: beside a real one it weighs nothing, and among its like all weigh the same."""
HIDDEN = -1e4
"""What hides a key from attention, in every floating point type."""
BLURRED = 1e-3
"""A mean of rotations that is shorter than this has no direction."""


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
    mask: Tensor | None = None
    """The host's own mask of padding, as it was handed to the first block; None: the host handed none."""
    positions: Positions | None = None
    """Rotations of the patches there are now."""
    handed: Handed | None = None
    """What the first block was handed beside its tokens."""

    @property
    def group(self) -> Tensor | None:
        """Current index of each input token, int64 [B,N0], -1 if it was dropped; None means the identity."""
        if not self.rows:
            return None
        group = self.rows[0]
        for row in self.rows[1:]:
            group = follow(group, row)
        return group

    @property
    def nobody(self) -> Tensor | None:
        """Which tokens stand for nothing, boolean [B,N]; None where the host handed no mask."""
        return None if self.mask is None or self.size is None else self.size < 0.5

    def bias(self, proportional: bool = True) -> Tensor | None:
        """Return what is added to the logits of each key, float32 [B,1,1,N]: log(size), and what hides padding.

        None while all sizes are 1, or without `proportional`, when nothing is padded.
        """
        nobody = self.nobody
        if self.size is None or not (proportional or nobody is not None):
            return None
        bias = self.size.log() if proportional else torch.zeros_like(self.size)
        return (bias if nobody is None else torch.where(nobody, HIDDEN, bias))[:, None, None, :]

    def apply(self, plan: Plan, x: Tensor, *, sizes: bool = True) -> tuple[Tensor, TokenState]:
        """Return the features x [B,N,C] reduced to [B,kept,C], and their state. `sizes=False` leaves sizes unset."""
        reduced, size = plan.reduce(x, self.size)
        kept = size if sizes or self.mask is not None else None
        positions = None if self.positions is None else moved(self.positions, plan, self.size, self.protected)
        return reduced, replace(self, size=kept, rows=(*self.rows, plan.row), count=plan.kept, positions=positions)

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


def moved(positions: Positions, plan: Plan, size: Tensor | None, protected: int) -> Positions:
    """Return the rotations of the outputs of a plan, each [B,1,P,d]: the mean direction of their members.

    A merged token stands where its members are on average, each weighted by its size. The mean of unit vectors is
    brought back to length 1, so that keys are turned and not shrunk; members that cancel out leave the first one's.
    """
    batch = plan.row.shape[0]
    leading = ((0, 0, protected, 0), (1.0, 0.0))
    both = [
        torch.nn.functional.pad(part.reshape(-1, *part.shape[-2:]).float(), leading[0], value=value)
        for part, value in zip(positions, leading[1], strict=True)
    ]
    table = torch.cat(both, -1).expand(batch, -1, -1)
    mean = combine(table, plan.row, plan.mean_weights(size), plan.kept, True)
    cosine, sine = mean.chunk(2, -1)
    length = torch.hypot(cosine, sine)
    first = take(table, plan.first_members()).chunk(2, -1)
    turned = [
        torch.where(length < BLURRED, own, part / length.clamp_min(BLURRED))[:, None, protected:]
        for part, own in zip((cosine, sine), first, strict=True)
    ]
    return turned[0].to(positions[0].dtype), turned[1].to(positions[1].dtype)


def follow(group: Tensor, row: Tensor) -> Tensor:
    """Compose the map of earlier steps with a new row map; dropped stays dropped."""
    return torch.where(group < 0, -1, row.gather(1, group.clamp(min=0)))


def require_nothing_dropped(drops: bool, what: str) -> None:
    """Raise InputError when a reduction that drops tokens is asked to restore them."""
    if drops:
        raise InputError(f"{what} drops tokens, so the full grid cannot be restored; merge or fuse instead")
