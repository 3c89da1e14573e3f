"""The part of a teacher's next-token probabilities that a student is compared on: chosen by a net, or fixed.

classes of a place by falling probability, each at its rank: the mass of those above it plus half of its own

rank      0 .....l...............u............ 1
gate      0 ... 0 / 1 1 1 1 1 1 1 \\ 0 ....... 0      l, u of a small net for each place, edges of width kappa
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.methods.distil._shared.divergences import check_vocabulary

Clip = Literal["learned", "fixed", "none"]
REACH = 20.0
"""Limits of 0 and 1 stand so many edges outside of all ranks, where a gate is 1 within 2e-9."""


class Limits(nn.Module):
    """A net that gives each place its limits (l, u), from both models' probabilities of the teacher's first classes.

    Reads [rows, 2 top + 2]: probabilities of both, and both entropies in nats.
    """

    def __init__(self, top: int, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2 * top + 2, width), nn.Linear(width, 2)
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():  # at first two edges outside of all ranks: nearly all is kept, and gates have a slope
            self.last.bias.copy_(torch.tensor([-1.386, 1.386]))

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return (l, u), each [rows] in (0, 1)."""
        low, high = torch.sigmoid(self.last(F.gelu(self.first(seen)))).unbind(dim=1)
        return low, high


def clipped_divergence(
    student: Tensor,
    teacher: Tensor,
    following: Tensor,
    *,
    clip: Clip,
    top: int,
    limits: nn.Module | None = None,
    mass: float = 0.95,
    floor: float = 0.9,
    kappa: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Return (KL(p' || q'), kept mass of the teacher) of each row, float32 [rows]; p', q' are clipped and normalised.

    The teacher's `top` most probable classes have gates of their own; all others share that of a class at their
    middle rank. The reference token is always kept. Gates that keep less than `floor` of the teacher's mass are raised
    in equal proportion to the missing part, so that exactly `floor` is kept.

    Args:
        student, teacher: logits [rows, classes].
        following: reference token of each row, int64 [rows].
        clip: "learned" asks `limits`; "fixed" keeps the classes whose mass first reaches `mass`; "none" keeps all.

    Raises:
        TaskError: other vocabularies.
    """
    check_vocabulary(student, teacher)
    own, wanted = (F.log_softmax(logits.float(), dim=1) for logits in (student, teacher.detach()))
    p, q, gap = wanted.exp(), own.exp(), wanted - own
    best, ids = wanted.topk(min(top, wanted.shape[1]), dim=1)
    best = best.exp()
    above = best.cumsum(dim=1)
    if clip == "learned":
        assert limits is not None
        seen = torch.cat([best, q.gather(1, ids), entropy(wanted), entropy(own)], dim=1).detach()
        low, high = (REACH * kappa * (2 * side - 1) + side for side in limits(seen))
        ranks = torch.cat([above - best / 2, (1 + above[:, -1:]) / 2], dim=1)
        gates = torch.sigmoid((ranks - low[:, None]) / kappa) * torch.sigmoid((high[:, None] - ranks) / kappa)
    elif clip == "fixed":
        gates = (torch.cat([above - best, above[:, -1:]], dim=1) < mass).float()
    else:
        gates = torch.ones(len(p), best.shape[1] + 1, device=p.device)
    rest = gates[:, -1:]
    ids = torch.cat([ids, following[:, None]], dim=1)
    listed = ids[:, :-1] == following[:, None]
    single = torch.cat([torch.where(listed, 1.0, gates[:, :-1]), (~listed.any(dim=1, keepdim=True)).float()], dim=1)
    # the shared gate on every class, and on the listed ones what theirs differ by
    listing = torch.cat([torch.ones_like(listed), ~listed.any(dim=1, keepdim=True)], dim=1)
    extra = torch.where(listing, single - rest, 0.0)

    def gated(values: Tensor) -> Tensor:
        return rest[:, 0] * values.sum(dim=1) + (extra * values.gather(1, ids)).sum(dim=1)

    kept = gated(p).clamp(min=1e-9)
    if clip == "learned":
        raised = ((floor - kept) / (1 - kept).clamp(min=1e-9)).clamp(0, 1)
        rest, extra = rest + raised[:, None] * (1 - rest), extra * (1 - raised[:, None])
        kept = gated(p).clamp(min=1e-9)
    theirs = gated(q).clamp(min=1e-9)
    return gated(p * gap) / kept - kept.log() + theirs.log(), kept.detach()


def entropy(logs: Tensor) -> Tensor:
    """Return the entropy of log-probabilities [rows, classes], in nats, [rows, 1]."""
    return -(logs.exp() * logs).sum(dim=1, keepdim=True)
