"""AUC, gAUC, log loss, information gain and calibration of scores that arrive in chunks: exact, in bounded memory.

chunk -> buffer --full--> sorted rows (group, score, positives, negatives), one for each distinct score of a group
                 still over half of the limit --> a sorted run on disk
result: the runs are merged in key order, a block at a time; every figure is a sum over that order

Memory: `limit` rows of 32 bytes, up to six times while sorting, whatever the number of examples (under 200 MB by
default; ten million distinct scores were measured at 166 MB), plus the distinct scores of one group for gAUC. Disk: 32
bytes for each distinct score and run. Neither the order of the chunks nor how they are cut moves the
result beyond the rounding of the weights' sums, as these run over sorted distinct scores.
"""

from __future__ import annotations

import bisect
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.errors import TaskError
from lessen.files import writing
from lessen.metrics.base import Floats, binary, split_targets
from lessen.metrics.calibration import sigmoid
from lessen.metrics.outcomes import Array

ROW = np.dtype([("group", "<i8"), ("score", "<f8"), ("hit", "<f8"), ("miss", "<f8")])
Rows = NDArray[np.void]
LIMIT = 1_000_000


class StreamedClicks:
    """Takes in chunks of logits and labels, in any order, and gives the metrics of them all.

    Args:
        limit: rows held in memory before sorted runs go to disk.
        folder: where runs go; default the system's temporary folder. They vanish with this object.
    """

    def __init__(self, limit: int = LIMIT, folder: Path | None = None) -> None:
        if limit < 2:
            raise ValueError(f"limit must be at least 2 rows, found {limit}")
        self.limit, self.folder = limit, folder
        self.examples = 0
        self.grouped = False
        self._buffer: list[Rows] = []
        self._buffered = 0
        self._runs: list[Run] = []
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def add(self, scores: Array, targets: Array, groups: Array | None = None) -> None:
        """Take in a chunk.

        Args:
            scores: logits [n]; targets: labels [n], or [n, 2] with weights in the second column.
            groups: integers [n] for gAUC, in every chunk or in none.

        Raises:
            TaskError: lengths differ, a label is not 0 or 1, a weight is negative, a score is not finite.
            OutputError: a run cannot be written.
        """
        if not len(scores):
            return
        flat, labels = binary(scores, targets, need_both=False)
        own = split_targets(targets)[1]
        weights = np.ones(len(flat)) if own is None else own
        if not np.isfinite(flat).all():
            raise TaskError("a score is NaN or infinite; no metric can order it")
        if self.examples and (groups is not None) != self.grouped:
            raise TaskError("groups must be given with every chunk or with none")
        if groups is not None and len(groups) != len(flat):
            raise TaskError(f"{len(groups)} groups for {len(flat)} scores: gAUC needs one group an example")
        self.grouped = groups is not None
        self.examples += len(flat)
        for start in range(0, len(flat), self.limit):
            part = slice(start, start + self.limit)
            rows = np.empty(len(flat[part]), dtype=ROW)
            rows["group"] = 0 if groups is None else np.asarray(groups)[part]
            rows["score"] = flat[part] + 0.0  # minus zero equals zero
            rows["hit"], rows["miss"] = weights[part] * labels[part], weights[part] * (1.0 - labels[part])
            self._hold(rows)

    def merge(self, other: StreamedClicks) -> None:
        """Take in everything that `other` saw, which may have run in another process; `other` stays as it is."""
        if self.examples and other.examples and self.grouped != other.grouped:
            raise TaskError("groups must be given with every chunk or with none")
        self.grouped = self.grouped or other.grouped
        self.examples += other.examples
        for rows in other._sorted_blocks():
            self._hold(rows)

    def result(self) -> dict[str, float]:
        """Return auc, logloss, rig (relative information gain), calibration_ratio and, with groups, gauc.

        Raises:
            TaskError: one class only was seen, or no group has both.
        """
        sums = _Sums()
        for rows in self._by_score():
            sums.add(rows)
        found = sums.result()
        if self.grouped:
            found["gauc"] = _grouped(self._sorted_blocks())
        return found

    # -- holding ------------------------------------------------------------------------------------------------
    def _hold(self, rows: Rows) -> None:
        self._buffer.append(rows)
        self._buffered += len(rows)
        if self._buffered < self.limit:
            return
        joined = combined(self._buffer)
        if len(joined) > self.limit // 2:
            self._spill(joined)
            joined = joined[:0]
        self._buffer, self._buffered = [joined], len(joined)

    def _spill(self, rows: Rows) -> None:
        with writing(self.folder or Path(tempfile.gettempdir())):
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="lessen-metrics-", dir=self.folder)
            run = Run(Path(self._temporary.name) / f"{len(self._runs)}.rows", len(rows))
            rows.tofile(run.path)
        self._runs.append(run)

    # -- reading in order ---------------------------------------------------------------------------------------
    def _sorted_blocks(self) -> Iterator[Rows]:
        """Yield all rows in the order of (group, score), each key once, a block at a time."""
        self._buffer = [combined(self._buffer)] if self._buffer else []
        self._buffered = len(self._buffer[0]) if self._buffer else 0
        runs: list[Run | Rows] = [*self._runs, *self._buffer]
        yield from merged([run for run in runs if len(run)], max(1, self.limit // max(1, len(runs))))

    def _by_score(self) -> Iterator[Rows]:
        """Yield all rows in the order of the score alone; with groups, by a second stream without them."""
        if not self.grouped:
            yield from self._sorted_blocks()
            return
        plain = StreamedClicks(self.limit, self.folder)
        for rows in self._sorted_blocks():
            single = rows.copy()
            single["group"] = 0
            plain._hold(single)
        yield from plain._sorted_blocks()


def combined(parts: list[Rows]) -> Rows:
    """Return rows sorted by (group, score), equal keys added up."""
    rows = np.concatenate(parts)
    if len(rows) < 2:
        return rows
    rows = rows[np.lexsort((rows["score"], rows["group"]))]
    changed = (rows["score"][1:] != rows["score"][:-1]) | (rows["group"][1:] != rows["group"][:-1])
    starts = np.flatnonzero(np.r_[True, changed])
    kept = rows[starts]
    for name in ("hit", "miss"):
        kept[name] = np.add.reduceat(rows[name], starts)
    return kept


class Run:
    """Sorted rows in a file; a slice is read when asked for, as pages of a mapping would count as held memory."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, place: Any) -> Any:
        """Return one row, or the rows of a slice without a step."""
        start, stop = (place.start, place.stop) if isinstance(place, slice) else (place, place + 1)
        rows = np.fromfile(self.path, dtype=ROW, count=stop - start, offset=start * ROW.itemsize)
        return rows if isinstance(place, slice) else rows[0]


def merged(runs: list[Run | Rows], block: int) -> Iterator[Rows]:
    """Merge sorted runs: between two cuts no run holds more than `block` rows, so that a block is what memory holds."""
    if not runs:
        return
    keys = [_key(run[place]) for run in runs for place in range(block, len(run), block)]
    cuts = sorted(set(keys))
    places = [[0, *_positions(run, cuts), len(run)] for run in runs]
    for number in range(len(cuts) + 1):
        ends = [(run, p[number], p[number + 1]) for run, p in zip(runs, places, strict=True)]
        parts = [run[start:stop] for run, start, stop in ends if stop > start]
        if parts:
            yield combined(parts)


def _key(row: Any) -> tuple[int, float]:
    return int(row["group"]), float(row["score"])


def _positions(run: Run | Rows, cuts: list[tuple[int, float]]) -> list[int]:
    """Return for each cut how many rows of a sorted run lie before it."""
    found, low = [], 0
    for cut in cuts:
        low = bisect.bisect_left(run, cut, low, key=_key)
        found.append(low)
    return found


class _Sums:
    """What one pass over distinct scores in rising order adds up."""

    def __init__(self) -> None:
        self.hits = self.misses = self.area = self.loss = self.expected = 0.0

    def add(self, rows: Rows) -> None:
        """Take in the next rows, scores above all earlier ones."""
        score, hit, miss = rows["score"], rows["hit"], rows["miss"]
        below = self.misses + np.cumsum(miss) - miss
        self.area += float((hit * (below + 0.5 * miss)).sum())
        self.loss += float((hit * np.logaddexp(0.0, -score) + miss * np.logaddexp(0.0, score)).sum())
        self.expected += float(((hit + miss) * sigmoid(score)).sum())
        self.hits += float(hit.sum())
        self.misses += float(miss.sum())

    def result(self) -> dict[str, float]:
        """Return the metrics. Raises TaskError where one class only has weight."""
        if not (self.hits > 0 and self.misses > 0):
            raise TaskError("AUC needs both classes, the labels hold only one; use a larger or different split")
        total = self.hits + self.misses
        rate, loss = self.hits / total, self.loss / total
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
        return {
            "auc": self.area / (self.hits * self.misses),
            "logloss": loss,
            "rig": 1.0 - loss / entropy,
            "calibration_ratio": self.expected / self.hits,
        }


def _grouped(blocks: Iterator[Rows]) -> float:
    """Return the weighted mean of the AUC of each group with both classes."""
    total = weight = 0.0
    rest: Rows = np.empty(0, dtype=ROW)
    for rows in blocks:
        rows = np.concatenate([rest, rows])
        last = int(np.searchsorted(rows["group"], rows["group"][-1], "left"))  # its group may go on
        part, share = _of_groups(rows[:last])
        total, weight, rest = total + part, weight + share, rows[last:]
    part, share = _of_groups(rest)
    if weight + share == 0:
        raise TaskError("gAUC needs a group with both classes; every group holds one class only")
    return (total + part) / (weight + share)


def _of_groups(rows: Rows) -> tuple[float, float]:
    """Return the sum of AUC times weight over whole groups, and the sum of the weights."""
    if not len(rows):
        return 0.0, 0.0
    group, hit, miss = rows["group"], rows["hit"], rows["miss"]
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    before = np.cumsum(miss) - miss
    below: Floats = before - np.repeat(before[first], np.diff(np.r_[first, len(rows)]))
    area, hits, misses = (np.add.reduceat(x, first) for x in (hit * (below + 0.5 * miss), hit, miss))
    usable = (hits > 0) & (misses > 0)
    share = (hits + misses)[usable]
    return float((area[usable] / (hits * misses)[usable] * share).sum()), float(share.sum())
