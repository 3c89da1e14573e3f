"""Which features to compute now: a budgeted active set that follows a drifting stream.

The source (Fan et al., arXiv 2412.01062) is known from its abstract and summaries only: clusters, weights from
within-cluster variances, mutual information with the target, a budget. Everything below that level (decay, bins,
hysteresis, delayed labels, the correction for chance, the combination of ranks) is our design; no claim of fidelity
is made, and the paper's convolutional network is not part of it.

    rows -> standardise by decayed mean, variance -> window -> clusters of rows -> weight of each feature
                                        `-> 16 bins -> wait for the label -> decayed counts -> information
    0.1 * rank(weight) + 0.9 * information / largest -> best `budget`, no near copies -> hysteresis -> active
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.errors import ConfigError, DataError

_WINDOW = 1024
"""Samples that clusters' spreads, correlations and bins are measured on."""
_STALE = 0.25
"""Nats of entropy that a feature's bins may lose against bins fitted to the window before they are moved."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class DriftSettings:
    """Sizes in samples. The defaults suit streams of hundreds of features and some samples a second or more."""

    budget: int = 32
    """Features that may be active at once."""
    every: int = 256
    """Samples between two updates."""
    half_life: float = 2048.0
    """Samples after which a count weighs half; infinity never forgets."""
    clusters: int = 8
    bins: int = 16
    classes: int = 2
    hysteresis: int = 3
    """Consecutive updates in which a feature must belong to the best, or not, before it is switched."""
    copies: float = 0.95
    """Absolute correlation in the window from which a feature counts as a copy of a better one."""
    weight_share: float = 0.1
    probe: int = 32
    """Inactive features, drawn anew at each update, that take part in the clustering."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1 or self.every < 2 or self.clusters < 1 or self.bins < 2 or self.classes < 2:
            raise ConfigError("budget, clusters must be at least 1; every, bins, classes at least 2")
        if self.half_life <= 0 or self.hysteresis < 1 or not 0 <= self.weight_share <= 1:
            raise ConfigError("half_life must be above 0, hysteresis at least 1, weight_share between 0 and 1")


class DriftingSelector:
    """Follows a stream: `observe` rows as they come, `reveal` their labels once known, read `active`."""

    def __init__(self, features: int, settings: DriftSettings | None = None) -> None:
        self.settings = settings or DriftSettings()
        self.features = features
        self.active: Flags = np.zeros(features, dtype=bool)
        self.moments = DecayedMoments(features, self.settings.half_life)
        self.counts = np.zeros((features, self.settings.bins, self.settings.classes))
        self.centres: Floats = np.zeros((0, features))
        self.members = np.zeros(self.settings.clusters)
        self.updates = 0
        self._edges: Floats | None = None
        self._window: deque[Floats] = deque(maxlen=max(1, round(_WINDOW / self.settings.every)))
        self._unlabelled: deque[NDArray[np.float32]] = deque()
        """Standardised rows that wait for their label; they are binned when it comes."""
        self._rest: Floats = np.zeros((0, features))
        self._waiting_on = np.zeros(features, dtype=np.int64)
        self._waiting_off = np.zeros(features, dtype=np.int64)
        self._generator = np.random.default_rng(self.settings.seed)

    # -- the stream -------------------------------------------------------------------------------------------
    def observe(self, rows: Floats) -> None:
        """Take rows [n, features] in order of time; every `every` rows the active set is reconsidered.

        Raises:
            DataError: wrong width, NaN or infinity.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise DataError(f"rows must have shape [n, {self.features}], found {rows.shape}")
        if not np.isfinite(rows).all():
            raise DataError("rows hold NaN or infinity; fill them before they enter the stream")
        pending = np.concatenate([self._rest, rows])
        size = self.settings.every
        for start in range(0, len(pending) - size + 1, size):
            self._advance(pending[start : start + size])
        self._rest = pending[len(pending) - len(pending) % size :]

    def reveal(self, labels: NDArray[np.int64]) -> None:
        """Give the classes of the oldest rows whose labels were not known yet.

        Raises:
            DataError: more labels than rows that entered an update, or a class that does not exist.
        """
        labels = np.asarray(labels, dtype=np.int64)
        if len(labels) > len(self._unlabelled):
            raise DataError(f"{len(labels)} labels, but only {len(self._unlabelled)} rows wait for one")
        if len(labels) and (labels.min() < 0 or labels.max() >= self.settings.classes):
            raise DataError(f"labels must be classes from 0 to {self.settings.classes - 1}")
        if not len(labels):
            return
        binned = self._binned(np.stack([self._unlabelled.popleft() for _ in range(len(labels))]))
        self.counts *= 0.5 ** (len(labels) / self.settings.half_life)
        cell = (np.arange(self.features) * self.settings.bins + binned) * self.settings.classes + labels[:, None]
        self.counts += np.bincount(cell.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)

    def masked(self, rows: Floats) -> Floats:
        """Return standardised rows with inactive features at their mean, 0: they need not be computed at all."""
        return np.asarray(np.where(self.active, self.moments.standardised(rows), 0.0))

    # -- scores -----------------------------------------------------------------------------------------------
    def information(self) -> Floats:
        """Return each feature's decayed information about the label, in nats, less its chance level.

        Chance is (bins - 1)(classes - 1) / 2n for the effective n, the first-order bias of plain information.
        """
        total = np.maximum(self.counts.sum(axis=(1, 2)), 1e-12)
        cell, by_bin, by_class = self.counts, self.counts.sum(axis=2), self.counts.sum(axis=1)
        plain = (_xlogx(cell).sum(axis=(1, 2)) - _xlogx(by_bin).sum(axis=1) - _xlogx(by_class).sum(axis=1)) / total
        plain += np.log(total)
        used = ((by_bin > 0).sum(axis=1) - 1) * ((by_class > 0).sum(axis=1) - 1)
        return np.asarray(plain - used / (2 * total))

    def weights(self, window: Floats) -> Floats:
        """Return for each feature how far its cluster means lie apart, relative to its spread inside clusters.

        The published 1 / variance prefers dead features and depends on units; this is scale free.
        """
        nearest = self._assign(window)
        share = np.bincount(nearest, minlength=len(self.centres)) / len(window)
        present = np.flatnonzero(share)
        means = np.stack([window[nearest == k].mean(axis=0) for k in present])
        within = sum(share[k] * window[nearest == k].var(axis=0) for k in present)
        between = (share[present, None] * (means - window.mean(axis=0)) ** 2).sum(axis=0)
        return np.asarray(between / (within + 1e-3))

    # -- one update -------------------------------------------------------------------------------------------
    def _advance(self, rows: Floats) -> None:
        self.moments.add(rows)
        scaled = self.moments.standardised(rows)
        self._unlabelled.extend(scaled.astype(np.float32))
        self._window.append(scaled)
        window = np.concatenate(list(self._window))
        if self._edges is None or self.updates % (self._window.maxlen or 1) == 0:  # the window is new as a whole
            self._move_edges(window)
        self._recluster(scaled)
        score = self._score(window)
        self._switch(self._best(score, window), score)
        self.updates += 1

    def _move_edges(self, window: Floats) -> None:
        """Fit bins to the window where those of old tell its rows apart much worse than bins could.

        Edges stand in standard deviations, so that decayed counts keep their meaning as levels move; when they move,
        counts go to the new bins as the window's rows do.
        """
        found = np.quantile(window, np.arange(1, self.settings.bins) / self.settings.bins, axis=0)
        if self._edges is None:
            self._edges = found
            return
        old = self._binned(window)
        new = _bins(window, found)
        worse = _entropy(new, self.settings.bins) - _entropy(old, self.settings.bins) > _STALE
        for feature in np.flatnonzero(worse).tolist():
            self.counts[feature] = self._moved(feature, old[:, feature], new[:, feature], found[:, feature])
            self._edges[:, feature] = found[:, feature]

    def _moved(self, feature: int, old: NDArray[np.int64], new: NDArray[np.int64], edges: Floats) -> Floats:
        """Return the counts [bins, classes] of a feature in its new bins."""
        bins = self.settings.bins
        share = np.bincount(old * bins + new, minlength=bins * bins).reshape(bins, bins).astype(np.float64)
        assert self._edges is not None
        # a bin of which the window holds no row goes where its edge lies
        for empty in np.flatnonzero(share.sum(axis=1) == 0).tolist():
            edge = self._edges[min(empty, bins - 2), feature]
            share[empty, int((edge > edges).sum())] = 1.0
        return np.asarray((share / share.sum(axis=1, keepdims=True)).T @ self.counts[feature])

    def _binned(self, scaled: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        assert self._edges is not None
        return _bins(scaled, self._edges)

    def _score(self, window: Floats) -> Floats:
        # information by its size, not its rank: among many features without any, ranks would let the weight decide
        information = np.maximum(self.information(), 0.0)
        score = self.settings.weight_share * _ranks(self.weights(window))
        score += (1 - self.settings.weight_share) * information / max(float(information.max()), 1e-12)
        return np.where(self.moments.alive(), score, -np.inf)

    def _recluster(self, rows: Floats) -> None:
        """Move the centres of online k-means, rate 1 / count; only active and probed features decide membership."""
        if not len(self.centres):
            picked = self._generator.choice(len(rows), min(self.settings.clusters, len(rows)), replace=False)
            self.centres = rows[picked].copy()
            self.members = np.ones(len(self.centres))
        idle = np.flatnonzero(~self.active)
        self._seen = self.active.copy()
        self._seen[self._generator.choice(idle, min(self.settings.probe, len(idle)), replace=False)] = True
        nearest = self._assign(rows)
        self.members *= 0.5 ** (len(rows) / self.settings.half_life)
        for cluster in np.unique(nearest):
            own = rows[nearest == cluster]
            self.members[cluster] += len(own)
            self.centres[cluster] += (own.mean(axis=0) - self.centres[cluster]) * len(own) / self.members[cluster]

    def _assign(self, rows: Floats) -> NDArray[np.int64]:
        points, centres = rows[:, self._seen], self.centres[:, self._seen]
        return np.asarray((-2 * points @ centres.T + (centres**2).sum(axis=1)).argmin(axis=1))

    def _best(self, score: Floats, window: Floats) -> Flags:
        """Return the greedy best `budget` features, leaving out near copies of better ones."""
        best = np.zeros(self.features, dtype=bool)
        spread = window.std(axis=0)
        unit = (window - window.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        for feature in np.argsort(-score, kind="stable"):
            if best.sum() >= self.settings.budget or not np.isfinite(score[feature]):
                break
            alike = np.abs(unit[:, best].T @ unit[:, feature]) / len(window)
            if not (alike > self.settings.copies).any():
                best[feature] = True
        return best

    def _switch(self, best: Flags, score: Floats) -> None:
        """Switch features that were among the best, or were not, often enough in a row; stay inside the budget."""
        self._waiting_on = np.where(best & ~self.active, self._waiting_on + 1, 0)
        self._waiting_off = np.where(~best & self.active, self._waiting_off + 1, 0)
        self.active[self.active & ~self.moments.alive()] = False
        self.active[self._waiting_off >= self.settings.hysteresis] = False
        entering = np.flatnonzero(self._waiting_on >= self.settings.hysteresis)
        room = self.settings.budget - int(self.active.sum())
        for feature in entering[np.argsort(-score[entering], kind="stable")][: max(room, 0)]:
            self.active[feature] = True


class DecayedMoments:
    """Mean and variance of each feature with exponential forgetting; exact when nothing is forgotten."""

    def __init__(self, features: int, half_life: float) -> None:
        self.half_life = half_life
        self.weight = 0.0
        self.mean = np.zeros(features)
        self.square = np.zeros(features)
        """Decayed sum of squared deviations from the mean."""

    def add(self, rows: Floats) -> None:
        """Take rows [n, features] in."""
        fade = 0.5 ** (len(rows) / self.half_life)
        old, new = self.weight * fade, float(len(rows))
        mean = rows.mean(axis=0)
        shift = mean - self.mean
        self.square = self.square * fade + ((rows - mean) ** 2).sum(axis=0) + shift**2 * old * new / (old + new)
        self.mean += shift * new / (old + new)
        self.weight = old + new

    @property
    def variance(self) -> Floats:
        """Population variance of each feature."""
        return np.asarray(self.square / max(self.weight, 1e-300))

    def alive(self) -> Flags:
        """Return which features vary at all, beyond rounding."""
        return np.asarray(self.variance > 1e-20 * (1.0 + self.mean**2))

    def standardised(self, rows: Floats) -> Floats:
        """Return rows at mean 0 and variance 1; features that do not vary become 0."""
        scale = np.where(self.alive(), np.sqrt(self.variance), 1.0)
        return np.asarray(np.where(self.alive(), (rows - self.mean) / scale, 0.0))


def _bins(scaled: NDArray[np.floating[Any]], edges: Floats) -> NDArray[np.int64]:
    """Return the bin of each value [n, features]: how many of its feature's edges [bins - 1, features] lie below."""
    return np.stack([np.searchsorted(own, values) for own, values in zip(edges.T, scaled.T, strict=True)], axis=1)


def _entropy(binned: NDArray[np.int64], bins: int) -> Floats:
    """Return for each feature the entropy of its bins [n, features], in nats."""
    features = binned.shape[1]
    cells = np.bincount((np.arange(features) * bins + binned).reshape(-1), minlength=features * bins)
    share = cells.reshape(features, bins) / len(binned)
    return np.asarray(-_xlogx(share).sum(axis=1))


def _xlogx(counts: Floats) -> Floats:
    return np.asarray(counts * np.log(np.where(counts > 0, counts, 1.0)))


def _ranks(values: Floats) -> Floats:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)
