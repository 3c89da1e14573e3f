"""HotSketch: a small hash table of buckets that follows which ids matter most, and which of them own a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.stored import hashing

SLOTS = 4
EMPTY = -1


class HotSketch(nn.Module):
    """`buckets` x 4 slots of (id, score, row); buffers, so that training can go back to its best epoch.

    ids int64 (-1: empty), scores float64, rows int64 (-1: the id owns none). An id lives in one bucket only. A new id
    that finds its bucket full takes over the slot of the smallest score, score included (Space-Saving), unless that
    slot owns a row. A batch is one vectorised update instead of a loop over occurrences.
    """

    ids: Tensor
    scores: Tensor
    rows: Tensor

    def __init__(self, buckets: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("ids", torch.full((buckets, SLOTS), EMPTY))
        self.register_buffer("scores", torch.zeros(buckets, SLOTS, dtype=torch.float64))
        self.register_buffer("rows", torch.full((buckets, SLOTS), EMPTY))
        self.row_count = rows

    def bucket(self, ids: Tensor) -> Tensor:
        """Return the bucket of each id, int64 of the same shape."""
        constant = ids.new_tensor(1_000_000_007)
        return hashing.into(hashing.mixed(hashing.residue(ids), constant, torch.zeros_like(constant)), len(self.ids))

    def row_of(self, ids: Tensor) -> Tensor:
        """Return the row that each flat id owns, int64 [n], -1 for none. Nothing is inserted."""
        bucket = self.bucket(ids)
        mine = self.ids[bucket] == ids.unsqueeze(1)
        return torch.where(mine, self.rows[bucket], EMPTY).amax(dim=1)

    def insert(self, ids: Tensor, values: Tensor) -> None:
        """Add values float64 [n] to the scores of distinct ids int64 [n]."""
        bucket = self.bucket(ids)
        mine = self.ids[bucket] == ids.unsqueeze(1)
        known = mine.any(dim=1)
        self.scores[bucket[known], mine[known].int().argmax(dim=1)] += values[known]
        order = torch.argsort(bucket[~known], stable=True)
        new, values, bucket = ids[~known][order], values[~known][order], bucket[~known][order]
        if not len(new):
            return
        # one id a bucket and round: those of one round cannot meet
        starts = torch.searchsorted(bucket, bucket)
        turn = torch.arange(len(new)) - starts
        for number in range(int(turn.max()) + 1):
            now = turn == number
            self._take_over(new[now], values[now], bucket[now])

    def _take_over(self, ids: Tensor, values: Tensor, bucket: Tensor) -> None:
        """Put ids, no two in one bucket, into the slots of the smallest score, unless these own a row."""
        slot = self.scores[bucket].argmin(dim=1)
        free = self.rows[bucket, slot] == EMPTY
        bucket, slot = bucket[free], slot[free]
        self.ids[bucket, slot] = ids[free]
        self.scores[bucket, slot] += values[free]

    def promote(self, threshold: float) -> tuple[Tensor, Tensor]:
        """Give free rows to ids of at least `threshold`, highest score first; return these ids and rows, int64 [m]."""
        able = ((self.scores >= threshold) & (self.rows == EMPTY) & (self.ids != EMPTY)).view(-1).nonzero()[:, 0]
        free = self.free_rows()
        if not len(able) or not len(free):
            return free[:0], free[:0]
        best = able[torch.argsort(self.scores.view(-1)[able], descending=True, stable=True)[: len(free)]]
        self.rows.view(-1)[best] = free[: len(best)]
        return self.ids.view(-1)[best], free[: len(best)]

    def free_rows(self) -> Tensor:
        """Return the rows that no id owns, int64, rising."""
        owned = torch.zeros(self.row_count, dtype=torch.bool)
        owned[self.rows[self.rows != EMPTY]] = True
        return (~owned).nonzero()[:, 0]

    def decay(self, rate: float, threshold: float) -> None:
        """Multiply all scores by `rate`; ids that fall below `threshold` give their row back."""
        self.scores *= rate
        self.rows[self.scores < threshold] = EMPTY
