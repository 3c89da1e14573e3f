"""What a student is compared by: classes, distances and angles between rows. Means over rows, natural logarithms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import TaskError


def class_rows(output: Tensor, batch: Any) -> Tensor:
    """Return logits of classes, [rows, classes], of what a model answered.

    One logit an example, [B] or [B, 1], is that of the second of two classes. More axes are rows: tokens of a language
    model, those left out that an `attention_mask` in the batch hides.
    """
    if output.ndim == 1 or output.shape[-1] == 1:
        positive = output.reshape(-1)
        return torch.stack([torch.zeros_like(positive), positive], dim=1)
    rows = output.flatten(0, -2)
    mask = _mask(batch)
    if output.ndim == 3 and mask is not None and mask.shape == output.shape[:2]:
        kept = mask.reshape(-1).bool()
        return rows if bool(kept.all()) else rows[kept]  # a copy of all logits is dear
    return rows


def _mask(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        found = batch.get("attention_mask")
        return found if isinstance(found, Tensor) else None
    if isinstance(batch, (tuple, list)):
        return next((mask for part in batch if (mask := _mask(part)) is not None), None)
    return None


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits [rows, classes], arXiv 1503.02531.

    The factor T^2 keeps the size of the gradient when T changes.
    """
    own, wanted = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)


def single_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `soft_divergence` of two classes where one logit an example says the second, [rows], in fewer steps."""
    own, wanted = student.float() / temperature, teacher.float() / temperature
    chance = wanted.sigmoid()
    fixed = (chance * wanted - F.softplus(wanted)).mean()
    return temperature**2 * ((F.softplus(own) - chance * own).mean() + fixed)


def decoupled_divergence(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the divergence on "target or not" and that among the other classes, arXiv 2203.08679, Eq. 5 to 7.

    Both with the factor T^2. `soft_divergence` of a row is the first plus (1 - p) times the second, with p the
    teacher's probability of the row's target.

    Args:
        student, teacher: logits [rows, classes].
        target: class of each row, int64 [rows].
    """
    rows = torch.arange(len(target), device=target.device)
    parts, others = [], []
    for logits in (student, teacher):
        logs = F.log_softmax(logits.float() / temperature, dim=1)
        own = logs[rows, target]
        rest = logs.masked_fill(F.one_hot(target, logs.shape[1]).bool(), -torch.inf)
        beside = rest.logsumexp(dim=1)
        parts.append(torch.stack([own, beside], dim=1))
        others.append((rest - beside[:, None]).masked_fill(rest == -torch.inf, 0.0))
    among = (others[1].exp() * (others[1] - others[0])).scatter(1, target[:, None], 0.0)
    first = F.kl_div(parts[0], parts[1], reduction="batchmean", log_target=True)
    return temperature**2 * first, temperature**2 * among.sum(dim=1).mean()


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss between distances of rows, each divided by its mean, arXiv 1904.05068, Eq. 4 to 6.

    Args:
        student, teacher: features [rows, width], the widths may differ.
    """
    own, wanted = (_distances(features.float()) for features in (student, teacher))
    return F.smooth_l1_loss(own, wanted)


def _distances(features: Tensor) -> Tensor:
    """Return distances of rows over the mean of those that are not 0, [rows, rows]."""
    squares = (features[:, None] - features[None]).square().sum(dim=2)
    distances = squares.clamp(min=1e-12).sqrt() * (squares > 0)
    positive = distances[distances > 0]
    return distances / positive.mean() if len(positive) else distances


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss between cosines of the angles that three rows make, arXiv 1904.05068, Eq. 7 to 9.

    Args:
        student, teacher: features [rows, width], the widths may differ; memory grows with rows^3.
    """
    own, wanted = (_angles(features.float()) for features in (student, teacher))
    return F.smooth_l1_loss(own, wanted)


def _angles(features: Tensor) -> Tensor:
    """Return the cosine at row i between rows j and k, [i, j, k]."""
    towards = F.normalize(features[None] - features[:, None], dim=2)
    return towards @ towards.transpose(1, 2)


def check_answers(student: Tensor, teacher: Tensor) -> None:
    """Raise TaskError unless both answer in the same form: the same classes, or the same vocabulary."""
    if student.shape != teacher.shape:
        raise TaskError(
            f"the teacher answers with shape {tuple(teacher.shape)}, the student with {tuple(student.shape)}: other "
            "classes or another vocabulary; give a teacher of the same ones, or use fitnet, rkd or crd, which compare "
            "features"
        )


def class_of(target: Tensor) -> Tensor:
    """Return the class of each row, int64 [rows]; of soft labels [rows, classes] the most probable."""
    return target.argmax(dim=1) if target.ndim == 2 and target.shape[1] > 1 else target.reshape(-1).long()


def enhanced_cross_entropy(
    student: Tensor, teacher: Tensor, target: Tensor, exponent: float, temperature: float
) -> Tensor:
    """Return the mean of -sum_c w_c log q_c with w_c = (p_c + m_c)^exponent - m_c, m one-hot (arXiv 2310.19444).

    Exponent 1 gives the cross-entropy with the teacher's probabilities.

    Args:
        student, teacher: logits [rows, classes].
        target: class of each row, int64 [rows].
    """
    logs = F.log_softmax(student.float() / temperature, dim=1)
    weights = F.softmax(teacher.float() / temperature, dim=1)
    if exponent != 1.0:
        mask = F.one_hot(target, weights.shape[1])
        weights = (weights + mask) ** exponent - mask
    return -(weights * logs).sum(dim=1).mean()


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return tau^2 / C sum over channels of KL of softmaxes over cells, mean over rows (arXiv 2011.13256, Eq. 4).

    Args:
        student, teacher: maps [B, C, H, W] of the same shape.
    """
    own, wanted = (F.log_softmax(maps.float().flatten(2) / temperature, dim=2) for maps in (student, teacher))
    return temperature**2 * F.kl_div(own, wanted, reduction="none", log_target=True).sum(dim=2).mean()


def trust(student: Tensor, teacher: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Return (alpha, c) of each row: how far the student trusts its own class, and the cross-entropy with that.

    alpha = sigmoid((c - c_teacher) / sharpness) in (0, 1/2], without gradient, with c and c_teacher the student's
    cross-entropies with its own and with the teacher's most probable class (arXiv 2402.03749).
    """
    logs = F.log_softmax(student.float(), dim=1)
    own = -logs.max(dim=1).values
    theirs = -logs.gather(1, teacher.argmax(dim=1, keepdim=True))[:, 0]
    return torch.sigmoid((own - theirs) / sharpness).detach(), own


def row_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row, float32 [rows]."""
    own, wanted = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(own, wanted, reduction="none", log_target=True).sum(dim=1)
