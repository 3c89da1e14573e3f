"""Divergences of a student's next-token probabilities from a teacher's, row by row, in natural logarithms.

Rows are worked through in pieces that stay in the processor's cache, and where the gradient has a closed form it is
made in the same pass: softmax is taken once a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lessen.errors import TaskError

Kind = Literal["forward", "reverse", "jsd"]
PIECE = 1 << 19
"""Logits that are worked on at once."""


def pieces(rows: int, classes: int) -> Iterator[slice]:
    """Yield slices of rows that hold about `PIECE` logits each."""
    step = max(1, PIECE // max(1, classes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def divergence(student: Tensor, teacher: Tensor, kind: Kind, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Return the divergence of each row, float32 [rows], times T^2.

    P are the teacher's and Q the student's probabilities at temperature T:

    forward  KL(P || Q)        reverse  KL(Q || P)
    jsd      b KL(P || M) + (1 - b) KL(Q || M), M = b P + (1 - b) Q, for b = `beta` (arXiv 2306.13649, Eq. 1)

    `jsd` divided by b tends to `forward` as b falls to 0; divided by 1 - b, to `reverse` as b rises to 1.

    Args:
        student, teacher: logits [rows, classes]; only the first gets a gradient.

    Raises:
        TaskError: they have other classes.
    """
    check_vocabulary(student, teacher)
    if temperature != 1.0:
        student, teacher = student / temperature, teacher / temperature
    if kind == "forward":
        found: Tensor = _Forward.apply(student, teacher)  # type: ignore[no-untyped-call]
        return temperature**2 * found
    mixed: Tensor = _Mixed.apply(student, teacher, beta if kind == "jsd" else None)  # type: ignore[no-untyped-call]
    return temperature**2 * mixed


def check_vocabulary(student: Tensor, teacher: Tensor) -> None:
    """Raise TaskError unless both have equally many classes."""
    if student.shape[-1] != teacher.shape[-1]:
        raise TaskError(
            f"the teacher's vocabulary has {teacher.shape[-1]} tokens, the student's {student.shape[-1]}: they cannot "
            "be compared token by token; give a teacher with the student's tokenizer"
        )


class _Forward(torch.autograd.Function):
    """KL(P || Q) of rows; the gradient on the student's logits is Q - P."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        losses = torch.empty(len(student), dtype=torch.float32, device=student.device)
        slopes = torch.empty(student.shape, dtype=torch.float32, device=student.device)
        for rows in pieces(*student.shape):
            own, wanted = student[rows].float(), teacher[rows].float()
            q, p = torch.softmax(own, dim=1, out=slopes[rows]), torch.softmax(wanted, dim=1)
            # log sum exp z = max z - log max softmax(z): no second exponential
            normal = own.amax(dim=1) - q.amax(dim=1).log() - wanted.amax(dim=1) + p.amax(dim=1).log()
            losses[rows] = torch.linalg.vecdot(p, wanted - own) + normal
            q.sub_(p)
        ctx.slopes, ctx.dtype = slopes, student.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        slopes, ctx.slopes = ctx.slopes, None
        return slopes.mul_(upstream[:, None]).to(ctx.dtype), None


class _Mixed(torch.autograd.Function):
    """KL(Q || P), or with a beta the generalised Jensen-Shannon divergence.

    The gradient on the student's logits is Q (g - sum of Q g) with g = log Q / P, or (1 - beta) log Q / M.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, beta: float | None) -> Tensor:
        losses = torch.empty(len(student), dtype=torch.float32, device=student.device)
        slopes = torch.empty(student.shape, dtype=torch.float32, device=student.device)
        for rows in pieces(*student.shape):
            own, wanted = (F.log_softmax(logits[rows].float(), dim=1) for logits in (student, teacher))
            q = torch.exp(own, out=slopes[rows])
            if beta is None:
                own.sub_(wanted)
                mean = torch.linalg.vecdot(q, own)
                losses[rows] = mean
            else:
                p = wanted.exp()
                middle = torch.lerp(q, p, beta).clamp_(min=torch.finfo(torch.float32).tiny).log_()
                own.sub_(middle).mul_(1 - beta)
                mean = torch.linalg.vecdot(q, own)
                losses[rows] = beta * torch.linalg.vecdot(p, wanted.sub_(middle)) + mean
            q.mul_(own.sub_(mean[:, None]))
        ctx.slopes, ctx.dtype = slopes, student.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        slopes, ctx.slopes = ctx.slopes, None
        return slopes.mul_(upstream[:, None]).to(ctx.dtype), None, None


def sampled_cross_entropy(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return sum_k w_k (log sum exp z - z[id_k]) of each row, float32 [rows].

    The gradient is one of KL(P || Q) where the weights are an unbiased estimate of the teacher's probabilities. Nothing
    of the logits' size is held beside the gradient on them.

    Args:
        student: logits z [rows, classes].
        ids: int64 [rows, draws]; one may stand twice in a row.
        weights: float32 [rows, draws], 0 where a place is empty.
    """
    found: Tensor = _Sampled.apply(student, ids, weights)  # type: ignore[no-untyped-call]
    return found


class _Sampled(torch.autograd.Function):
    """The gradient on the logits is (sum of weights) Q less the weights at their ids; Q is made on the way back."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        totals = torch.empty(len(student), dtype=torch.float32, device=student.device)
        for rows in pieces(*student.shape):
            torch.logsumexp(student[rows].float(), dim=1, out=totals[rows])
        ctx.save_for_backward(student, ids, weights, totals)
        return (weights * (totals[:, None] - student.gather(1, ids).float())).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        student, ids, weights, totals = ctx.saved_tensors
        scaled = weights * upstream[:, None]
        slopes, plain = torch.empty_like(student), student.dtype == torch.float32
        for rows in pieces(*student.shape):
            slope = (
                slopes[rows] if student.dtype == torch.float32 else torch.empty_like(student[rows], dtype=torch.float32)
            )
            torch.sub(student[rows], totals[rows, None], out=slope).exp_()
            slope.mul_(scaled[rows].sum(dim=1, keepdim=True)).scatter_add_(1, ids[rows], -scaled[rows])
            if not plain:
                slopes[rows] = slope
        return slopes, None, None
