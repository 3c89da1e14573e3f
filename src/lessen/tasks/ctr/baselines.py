"""What simple models make of the same features: logistic regression and gradient boosting.

They say what a network is worth. The two that learn come from scikit-learn; their one setting is chosen on the
validation split. Scores are logits, so that the task's own metrics judge them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.data.columns import Columns
from lessen.errors import MissingExtraError
from lessen.log import SILENT, Log
from lessen.metrics import AUC
from lessen.task import Split

Floats = NDArray[np.float64]
Splits = dict[Split, Columns]
INVERSE_STRENGTHS = (0.3, 1.0)
LEAVES = (15, 31)
ROUNDS = 200
LARGEST_CATEGORY = 250
FOLDS = 5


def baseline_scores(splits: Splits, log: Log = SILENT) -> dict[str, Floats]:
    """Return test logits [test rows] of each simple model, by name.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("baselines", "scikit-learn", "fitting baselines") from error
    log.note("baseline: logistic regression on one-hot features")
    scores = {"logistic regression": logistic_regression(splits)}
    log.note("baseline: gradient boosting on the same features")
    scores["gradient boosting"] = gradient_boosting(splits)
    return scores


def logistic_regression(splits: Splits) -> Floats:
    """Return test logits of an L2 logistic regression on one-hot ids.

    C, and whether sequence fields help at all, are chosen on validation.
    """
    from sklearn.linear_model import LogisticRegression

    labels = {split: columns.label.numpy() for split, columns in splits.items()}
    best, scores = -math.inf, np.empty(0)
    has_sequence = any(field.kind == "sequence" for field in splits["train"].layout.fields)
    for sequences in (False, True) if has_sequence else (True,):
        matrices = {split: _one_hot(columns, sequences) for split, columns in splits.items()}
        for strength in INVERSE_STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=300).fit(matrices["train"], labels["train"])
            value = AUC(model.decision_function(matrices["validation"]), labels["validation"])
            if value > best:
                best, scores = value, model.decision_function(matrices["test"])
    return np.asarray(scores, dtype=np.float64)


def gradient_boosting(splits: Splits) -> Floats:
    """Return test logits of boosted trees; leaves and rounds are chosen on validation.

    Trees cannot use thousands of unordered ids, so each field enters as the mean label of its ids in train (shrunken
    by ten pseudo-rows, from the other folds for train rows), averaged over the ids of multi-valued and sequence
    fields. Small categorical fields enter as categories as well.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    means, categories = _target_means(splits), _categories(splits)
    encoded = {split: np.column_stack([means[split], categories[split]]) for split in splits}
    native = [False] * means["train"].shape[1] + [True] * categories["train"].shape[1]
    labels = {split: columns.label.numpy() for split, columns in splits.items()}
    best, scores = -math.inf, np.empty(0)
    for leaves in LEAVES:
        model: Any = HistGradientBoostingClassifier(
            max_leaf_nodes=leaves,
            learning_rate=0.1,
            max_iter=ROUNDS,
            min_samples_leaf=50,
            early_stopping=False,
            categorical_features=native,
            random_state=0,
        )
        model.fit(encoded["train"], labels["train"])
        stages = zip(*(model.staged_decision_function(encoded[s]) for s in ("validation", "test")), strict=True)
        for validation, test in stages:
            value = AUC(validation, labels["validation"])
            if value > best:
                best, scores = value, test
    return np.asarray(scores, dtype=np.float64).ravel()


def _categories(splits: Splits) -> dict[Split, NDArray[np.int32]]:
    """Return the local ids of the categorical fields that are small enough for a histogram."""
    layout = splits["train"].layout
    start = {segment.name: segment.start for segment in layout.segments if segment.rows <= LARGEST_CATEGORY}
    small = [field for field in layout.single if field.segment in start]
    offsets = np.array([start[field.segment] for field in small], dtype=np.int32)
    columns = [field.start for field in small]
    return {split: part.ids[:, columns].numpy() - offsets for split, part in splits.items()}


def _one_hot(columns: Columns, sequences: bool) -> Any:
    """Return a sparse matrix [rows, table rows]: ones for single ids, shares for pooled fields; padding left out."""
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped, unused-ignore]

    ids = columns.ids.numpy()
    share = np.zeros(ids.shape)
    for field in columns.layout.fields:
        if field.kind == "sequence" and not sequences:
            continue
        part = slice(field.start, field.start + field.width)
        present = ids[:, part] > 0
        share[:, part] = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
    row = np.repeat(np.arange(len(ids)), ids.shape[1])
    keep = share.ravel() > 0
    shape = (len(ids), columns.layout.rows)
    return csr_matrix((share.ravel()[keep], (row[keep], ids.ravel()[keep])), shape=shape)


def _target_means(splits: Splits) -> dict[Split, Floats]:
    """Return [rows, fields] mean labels; a train row is encoded by the other folds only, so its label cannot leak."""
    train = splits["train"]
    label = train.label.numpy().astype(np.float64)
    fold = np.arange(len(train)) % FOLDS
    encoded: dict[Split, Floats] = {split: np.empty((len(c), len(c.layout.fields))) for split, c in splits.items()}
    for column, field in enumerate(train.layout.fields):
        part = {split: c.ids[:, field.start : field.start + field.width].numpy() for split, c in splits.items()}
        for split in ("validation", "test"):
            encoded[split][:, column] = _mean_label(part["train"], label, part[split], train.layout.rows)
        for held in range(FOLDS):
            rest, own = fold != held, fold == held
            encoded["train"][own, column] = _mean_label(
                part["train"][rest], label[rest], part["train"][own], train.layout.rows
            )
    return encoded


def _mean_label(known: NDArray[np.int32], label: Floats, wanted: NDArray[np.int32], rows: int) -> Floats:
    """Return the mean over the ids of each row of `wanted` of (labels + 10 prior) / (rows + 10); NaN without ids."""
    present = known > 0
    count = np.bincount(known[present], minlength=rows)
    total = np.bincount(known[present], np.broadcast_to(label[:, None], known.shape)[present], rows)
    rate = (total + 10 * label.mean()) / (count + 10)
    there = wanted > 0
    mean = np.where(there, rate[wanted], 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return np.asarray(np.where(there.any(axis=1), mean, np.nan))
