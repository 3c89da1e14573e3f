"""How much a column adds to what a model already has: held-out log loss under an additive logistic surrogate.

The surrogate is softmax(sum of one table of logits a column). One damped Newton step per table is closed form
(sums by value), so a candidate costs one pass over the sample; chosen columns are refitted by repeated steps.
Two folds by row order, which is random; a value unseen in the training fold gets logits 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lessen.log import SILENT, Log
from lessen.selection.ranking.rows import Keys

Floats = NDArray[np.float64]
_DAMPING = 4.0
"""Added to the curvature of each value: about the weight of a value seen 16 times at even odds."""
_ROUNDS = 4


class Surrogate:
    """The sampled rows with a label, coded; scores candidates against a set of columns already chosen."""

    def __init__(self, hashes: Mapping[str, Keys], classes: NDArray[np.uint8], names: Sequence[str]) -> None:
        known = np.unique(classes)
        self.target = (known[:, None] == classes[None, :]).astype(np.float64)
        self.codes = {name: np.unique(hashes[name], return_inverse=True)[1] for name in names}
        half = len(classes) // 2
        self.folds = (slice(0, half), slice(half, None))

    def losses(self, chosen: Sequence[str], candidates: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Return the held-out loss with `chosen`, and with each candidate added, in nats a row."""
        base, added = 0.0, dict.fromkeys(candidates, 0.0)
        for train, held in (self.folds, self.folds[::-1]):
            logits = self._fit(train, chosen)
            slopes = self._slopes(train, logits)
            base += _loss(logits[:, held], self.target[:, held]) / 2
            for name in candidates:
                moved = logits[:, held] + self._step(train, name, slopes)[:, self.codes[name][held]]
                added[name] += _loss(moved, self.target[:, held]) / 2
        return base, added

    def forward_selection(
        self, names: Sequence[str], count: int, start: Sequence[str] = (), log: Log = SILENT
    ) -> list[tuple[str, float]]:
        """Return up to `count` columns added one by one, each with the drop in held-out loss; stops at no gain."""
        chosen, added = list(start), list[tuple[str, float]]()
        while len(added) < count:
            left = [name for name in names if name not in chosen]
            if not left:
                break
            base, losses = self.losses(chosen, left)
            best = min(left, key=lambda name: losses[name])
            if losses[best] >= base:
                break
            chosen.append(best)
            added.append((best, base - losses[best]))
            log.progress("forward selection", len(added), count)
        return added

    def _fit(self, train: slice, chosen: Sequence[str]) -> Floats:
        """Return the logits of all rows, [classes, rows], of tables fitted to the training rows."""
        share = self.target[:, train].mean(axis=1)
        logits = np.tile(np.log(np.maximum(share, 1e-12))[:, None], (1, self.target.shape[1]))
        for _ in range(_ROUNDS if len(chosen) > 1 else 1):
            for name in chosen:
                logits += self._step(train, name, self._slopes(train, logits))[:, self.codes[name]]
        return logits

    def _slopes(self, train: slice, logits: Floats) -> tuple[Floats, Floats]:
        """Return first and second derivative of the log likelihood of the training rows, [classes, rows] each."""
        part = logits[:, train]
        chance = np.exp(part - part.max(axis=0))
        chance /= chance.sum(axis=0)
        return self.target[:, train] - chance, chance * (1 - chance)

    def _step(self, train: slice, name: str, slopes: tuple[Floats, Floats]) -> Floats:
        """Return logits to add for each value of `name`, shape [classes, values]."""
        codes = self.codes[name]
        values, part = int(codes.max()) + 1, codes[train]
        steps = [
            np.bincount(part, slope, values) / (np.bincount(part, curve, values) + _DAMPING)
            for slope, curve in zip(*slopes, strict=True)
        ]
        # all classes move at once, so each moves by (K - 1) / K of its own step, as in LogitBoost
        return np.stack(steps) * (1.0 - 1.0 / len(steps))


def _loss(logits: Floats, target: Floats) -> float:
    top = logits.max(axis=0)
    total = np.log(np.exp(logits - top).sum(axis=0)) + top
    return float((total - (logits * target).sum(axis=0)).mean())
