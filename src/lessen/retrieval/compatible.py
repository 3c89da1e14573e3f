"""Features of a new model searched against those of the old one: the loss that keeps them there, and the proof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SHARPNESS = 10.0


def higher_order_loss(new: Tensor, old: Tensor, labels: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Return a scalar that is small where each old feature is nearest to its new self.

    Args:
        new, old: features of the same examples, float [B, d], of any length; labels: int64 [B].

    Rows are old features, columns new ones; others of the same class are no negatives: they are left out, where the
    published code multiplies their product by zero and so keeps exp(0). Rows without a negative say nothing.
    """
    products = sharpness * F.normalize(old, dim=1) @ F.normalize(new, dim=1).t()
    others = labels[:, None] != labels[None, :]
    some = others.any(dim=1)
    if not bool(some.any()):
        return new.sum() * 0.0
    negatives = products.masked_fill(~others, float("-inf"))[some].logsumexp(dim=1)
    return (negatives - products.diagonal()[some]).mean()


def cross_accuracy(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> NDArray[np.bool_]:
    """Return whether each query's nearest class template has its class, bool [Q].

    Templates are means of unit features of a class in the gallery; features float [*, d] may come from two models.
    """
    classes = torch.unique(gallery_labels)
    unit = F.normalize(gallery.float(), dim=1)
    templates = torch.stack([unit[gallery_labels == one].mean(dim=0) for one in classes])
    found = (F.normalize(queries.float(), dim=1) @ F.normalize(templates, dim=1).t()).argmax(dim=1)
    return np.asarray(classes[found] == labels)


def compatibility(accuracies: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return average compatibility and accuracy of a matrix: queries of version t, gallery of k <= t, at [t][k].

    Version t is compatible with k < t where it finds strictly more in the old gallery than the old queries did.
    """
    pairs = [(t, k) for t in range(len(accuracies)) for k in range(t)]
    better = [accuracies[t][k] > accuracies[k][k] for t, k in pairs]
    lower = [accuracies[t][k] for t in range(len(accuracies)) for k in range(t + 1)]
    return {
        "compatibility": float(np.mean(better)) if better else None,
        "accuracy": float(np.mean(lower)),
        "pairs": len(pairs),
    }
