"""Topics from keywords (Lbl2Vec): which documents a handful of words stands for, and how near every other is to them.

keywords --mean of unit vectors--> query --> the nearest documents --> their mean is the topic --> cosines with all

Source: Schopf, Braun and Matthes, WEBIST 2021. Vectors come from outside: any encoder's, or an index's. A topic is the
mean of ONE document with the published defaults, because the threshold equals the best score; here at least ten are
taken unless it is said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import ConfigError, DataError

TEMPERATURE = 1 / 20


@dataclass(frozen=True)
class TopicSettings:
    """How many documents make a topic.

    Args:
        at_least: documents that are taken whatever their score.
        at_most: documents that are taken at most; None for no limit.
        offset: how far below the best score a document may lie; threshold: a score in its place.
        clean: leave out documents that lie apart from the others (local outlier factor; needs scikit-learn).
    """

    at_least: int = 10
    at_most: int | None = None
    offset: float = 0.0
    threshold: float | None = None
    clean: bool = False

    def __post_init__(self) -> None:
        if self.at_least < 1 or (self.at_most is not None and self.at_most < self.at_least) or self.offset < 0:
            raise ConfigError(
                f"at_least = {self.at_least}, at_most = {self.at_most}, offset = {self.offset} are not accepted: "
                "1 <= at_least <= at_most, offset 0 or more"
            )


@dataclass(frozen=True)
class Topic:
    """A topic's vector, float32 [d], and the numbers of the documents that made it, int64 [n], nearest first."""

    vector: Tensor
    chosen: Tensor


def find_topic(keywords: Tensor, documents: Tensor, settings: TopicSettings | None = None) -> Topic:
    """Return the topic of some keywords.

    Args:
        keywords: float [words, d]; documents: float [n, d], of one encoder.

    Raises:
        DataError: there is no keyword or no document, or their widths differ.
    """
    chosen = settings or TopicSettings()
    if not len(keywords) or not len(documents) or keywords.shape[1] != documents.shape[1]:
        raise DataError(
            f"keywords of shape {list(keywords.shape)} and documents of shape {list(documents.shape)} make no topic"
        )
    query = F.normalize(F.normalize(keywords.float(), dim=1).mean(dim=0), dim=0)
    scores = F.normalize(documents.float(), dim=1) @ query
    order = scores.argsort(descending=True, stable=True)
    limit = float(scores[order[0]]) - chosen.offset if chosen.threshold is None else chosen.threshold
    above = int((scores > limit).sum())
    count = max(above if chosen.at_most is None else min(above, chosen.at_most), chosen.at_least)
    rows = order[:count]
    if chosen.clean:
        rows = rows[_together(documents[rows])]
    return Topic(documents[rows].float().mean(dim=0), rows)


def _together(documents: Tensor) -> Tensor:
    """Return which documents do not lie apart, bool [n]. Raises MissingExtraError."""
    if len(documents) < 3:
        return torch.ones(len(documents), dtype=torch.bool)
    try:
        from sklearn.neighbors import LocalOutlierFactor
    except ImportError as error:
        from lessen.errors import MissingExtraError

        raise MissingExtraError("baselines", "scikit-learn", "leaving out documents that lie apart") from error
    found = LocalOutlierFactor(n_neighbors=min(20, len(documents) - 1)).fit_predict(documents.numpy())
    return torch.from_numpy(found == 1)


def scores(documents: Tensor, topics: list[Topic]) -> Tensor:
    """Return the cosine of every document with every topic, float32 [n, topics]."""
    vectors = torch.stack([topic.vector for topic in topics])
    return F.normalize(documents.float(), dim=1) @ F.normalize(vectors, dim=1).t()


def confidence(cosines: Tensor) -> Tensor:
    """Return how sure the nearest topic is, float32 [n]: the largest share of a softmax over cosines, by 1/20."""
    return (cosines / TEMPERATURE).softmax(dim=1).amax(dim=1)


def in_domain(cosines: Tensor, count: int) -> list[int]:
    """Return the documents to calibrate on: of each topic in turn the nearest that is left, `count` at most.

    Turns keep a topic of many near documents from taking all places.
    """
    orders = [cosines[:, topic].argsort(descending=True, stable=True).tolist() for topic in range(cosines.shape[1])]
    taken: dict[int, None] = {}
    for rank in range(len(cosines)):
        for order in orders:
            if len(taken) < count:
                taken.setdefault(order[rank])
    return list(taken)
