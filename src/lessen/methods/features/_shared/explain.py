"""A decision tree that imitates a click model on a few fields: rules to read, with their fidelity stated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lessen.errors import MissingExtraError
from lessen.metrics import AUC
from lessen.task import Split
from lessen.tasks.ctr.base import ClickTask

_DEPTH, _LEAF = 5, 50
_PRIOR = 10.0


def explain(model: nn.Module, task: ClickTask, fields: Sequence[str], seed: int) -> dict[str, Any]:
    """Fit a tree to the model's logits on training rows; judge it on validation rows.

    An id enters as the smoothed log odds of its training rows, a numeric field as it is; pooled fields as the mean of
    their ids' log odds. Returns rules (text), R2 against the logits, agreement of signs, AUC of tree and of model.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.tree import DecisionTreeRegressor, export_text
    except ModuleNotFoundError as error:
        raise MissingExtraError("baselines", "scikit-learn", "column-selection with explain") from error
    train, held = (_features(task, split, fields) for split in ("train", "validation"))
    logits = {split: _logits(model, task, split) for split in ("train", "validation")}
    tree = DecisionTreeRegressor(max_depth=_DEPTH, min_samples_leaf=_LEAF, random_state=seed)
    tree.fit(train, logits["train"])
    seen, wanted = np.asarray(tree.predict(held)), logits["validation"]
    labels = task.splits["validation"].label.numpy()
    return {
        "rules": export_text(tree, feature_names=[f"log odds of {name}" for name in fields], decimals=3),
        "leaves": int(tree.get_n_leaves()),
        "fidelity_r2": float(1.0 - ((wanted - seen) ** 2).mean() / max(float(wanted.var()), 1e-12)),
        "agreement": float(((wanted > 0) == (seen > 0)).mean()),
        "auc_tree": AUC(seen, labels),
        "auc_model": AUC(wanted, labels),
    }


def _logits(model: nn.Module, task: ClickTask, split: Split) -> NDArray[np.float64]:
    import torch

    columns = task.splits[split]
    with torch.no_grad():
        parts = [task.predict(model, batch).numpy() for batch in columns.batches(4096)]
    return np.concatenate(parts).astype(np.float64)


def _features(task: ClickTask, split: Split, fields: Sequence[str]) -> NDArray[np.float64]:
    train, columns = task.splits["train"], task.splits[split]
    base = float(train.label.mean())
    prior = np.log(base / (1.0 - base))
    result = []
    for name in fields:
        if name in task.layout.numeric and columns.numeric is not None:
            result.append(columns.numeric[:, task.layout.numeric.index(name)].numpy())
            continue
        field = task.layout.field(name)
        part = slice(field.start, field.start + field.width)
        ids, own = train.ids[:, part].numpy(), columns.ids[:, part].numpy()
        label = np.repeat(train.label.numpy(), field.width)
        shown = np.bincount(ids.reshape(-1), minlength=task.layout.rows) + _PRIOR
        hits = np.bincount(ids.reshape(-1), weights=label, minlength=task.layout.rows) + _PRIOR * base
        odds = np.log(hits / (shown - hits))
        result.append(np.where(own > 0, odds[own], prior).mean(axis=1))
    return np.stack(result, axis=1)
