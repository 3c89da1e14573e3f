"""A click log of any size that is drawn as it is read: Zipf vocabularies, planted interactions, a known best AUC.

block of rows = f(seed, split, block number);  weight and factors of an id = hash(seed, field, id)

Nothing is stored, so that ten million ids cost no more than ten thousand: memory is that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lessen.data.columns import Batch, Columns, IdField, Layout
from lessen.errors import ConfigError
from lessen.stored.fields import Segment
from lessen.task import Split, TaskOptions
from lessen.tasks.ctr.base import EVALUATION_BATCH, ClickTask
from lessen.train.settings import FitSettings

Floats = NDArray[np.float64]
BLOCK_ROWS = 1 << 16
KEPT_BLOCKS = 48
"""Blocks kept in memory: three million rows; longer logs are drawn again each epoch."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SMALLEST_FIELD = 20
HOT = 1 << 16
"""Ids of a field whose planted numbers are kept: with a Zipf law, nine reads in ten."""
FACTORS = 3
"""Length of the planted vectors."""


class ClickLogOptions(TaskOptions):
    """Size and difficulty of the log; `seed` makes the data, not the training."""

    ids: int = Field(100_000, ge=1000, le=2 * 10**9, description="ids of all fields together")
    fields: int = Field(8, ge=2, le=64, description="fields; each has half the ids of the one before, at least 20")
    rows: int = Field(200_000, ge=1000, description="training rows")
    held_out: int = Field(50_000, ge=200, description="rows of the validation split, and of the test split")
    exponent: float = Field(1.2, gt=0, le=3, description="Zipf exponent: the k-th most frequent id has k^-exponent")
    strength: float = Field(1.0, gt=0, description="scale of the planted logits")
    seed: int = Field(0, ge=0, description="seed of the data")
    model: Literal["dcnv2", "deepfm"] = Field("deepfm", description="reference model")
    dim: int = Field(15, ge=1, le=256, description="width of the vectors; deepfm adds a column of first-order weights")
    batch_size: int = Field(2048, ge=2, description="rows of a training step")
    learning_rate: float = Field(4e-3, gt=0, description="of Adam")
    table_l2: float = Field(3e-4, ge=0, description="penalty on the rows of a batch")
    epochs: int = Field(8, ge=1, description="at most")

    @model_validator(mode="after")
    def _fits(self) -> ClickLogOptions:
        if self.ids < 2 * SMALLEST_FIELD * self.fields:
            raise ValueError(f"{self.fields} fields need at least {2 * SMALLEST_FIELD * self.fields} ids")
        return self


class ClickLog(ClickTask):
    """label ~ Bernoulli(sigmoid(b + sum_f w_f[id_f] + sum over pairs f < g of <u_f[id_f], u_g[id_g]>)).

    Ids are numbered by frequency, as our encoder numbers them. Rows are independent, so the order of blocks and the
    order inside a block are what `seed` shuffles. `best_auc` is the AUC that the true probabilities have in
    expectation over labels on the test rows: no model can beat it except by chance.
    """

    name = "ctr-clicklog"
    Options: ClassVar[type[TaskOptions]] = ClickLogOptions

    def __init__(self, options: ClickLogOptions | None = None) -> None:
        self.options = options or ClickLogOptions()
        self.batch_size = self.options.batch_size
        self.settings = FitSettings(
            epochs=self.options.epochs,
            learning_rate=self.options.learning_rate,
            table_l2=self.options.table_l2,
            table_updates="lazy-adam",
            patience=1,
        )
        layout = _layout(field_sizes(self.options.ids, self.options.fields))
        if layout.rows >= 2**31:
            raise ConfigError(f"ctr-clicklog: {layout.rows} table rows do not fit int32 ids; use fewer ids")
        arguments = {"dim": self.options.dim, "hidden": (64, 32), "std": 0.1}
        super().__init__(self.options.model, layout, {}, arguments)

    def batches(self, split: Split, seed: int = 0) -> Iterator[Batch]:
        """Yield `({"ids": int32 [B, fields]}, label float32 [B])`; the train split is shuffled by `seed`."""
        blocks = self._count(split)
        shuffle = np.random.default_rng([self.options.seed, seed, blocks])
        order = shuffle.permutation(blocks) if split == "train" else np.arange(blocks)
        for block in order:
            columns, _ = self._block(split, int(block))
            if split != "train":
                yield from columns.batches(EVALUATION_BATCH)
            else:
                yield from columns.batches(self.batch_size, torch.from_numpy(shuffle.permutation(len(columns))))

    def probabilities(self, split: Split = "test") -> Floats:
        """Return the true click probability of each row of a split, in file order."""
        logits = [self._block(split, block)[1] for block in range(self._count(split))]
        chances: Floats = 1.0 / (1.0 + np.exp(-np.concatenate(logits)))
        return chances

    @property
    def best_auc(self) -> float:
        """The AUC of the true probabilities on the test rows, in expectation over labels."""
        return expected_auc(self.probabilities())

    def notes(self) -> list[str]:
        """Say the best AUC that is possible."""
        return [
            f"Synthetic log of {self.layout.rows:,} table rows; the true probabilities have AUC {self.best_auc:.4f}."
        ]

    def describe(self) -> dict[str, Any]:
        """Return the name and the options."""
        return {"name": self.name, **self.options.model_dump()}

    def _rows(self, split: Split) -> int:
        return self.options.rows if split == "train" else self.options.held_out

    def _count(self, split: Split) -> int:
        return -(-self._rows(split) // BLOCK_ROWS)

    def _block(self, split: Split, block: int) -> tuple[Columns, Floats]:
        rows = min(BLOCK_ROWS, self._rows(split) - block * BLOCK_ROWS)
        return _drawn(self.options, split, block, rows)


@lru_cache(maxsize=KEPT_BLOCKS)
def _drawn(options: ClickLogOptions, split: Split, block: int, rows: int) -> tuple[Columns, Floats]:
    """Return a block of rows and its true logits [rows]."""
    generator = np.random.default_rng([options.seed, SPLITS.index(split), block])
    sizes = field_sizes(options.ids, options.fields)
    local = np.stack([zipf_ranks(generator.random(rows), size, options.exponent) for size in sizes], axis=1)
    logits = _logits(local, options)
    label = (generator.random(rows) < 1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    layout = _layout(sizes)
    first = np.array([segment.start + 1 for segment in layout.segments])
    return Columns(torch.from_numpy((local + first).astype(np.int32)), torch.from_numpy(label), layout), logits


def field_sizes(ids: int, fields: int) -> list[int]:
    """Return the ids of each field: halves, the smallest at least 20, together exactly `ids`."""
    sizes = [max(SMALLEST_FIELD, ids >> (place + 1)) for place in range(fields)]
    sizes[0] += ids - sum(sizes)
    return sizes


def _layout(sizes: list[int]) -> Layout:
    """One categorical column a field; padding in row 0, and a row for unknown ids before each field's ids."""
    segments: list[Segment] = []
    for number, size in enumerate(sizes):
        start = segments[-1].start + segments[-1].rows if segments else 1
        segments.append(Segment(f"field{number}", start, size + 1))
    return Layout(tuple(IdField(s.name, "categorical", i, 1, s.name) for i, s in enumerate(segments)), tuple(segments))


def zipf_ranks(uniform: Floats, size: int, exponent: float) -> NDArray[np.int64]:
    """Return ranks in [0, size) of a power law, by inverting its continuous distribution over [1, size + 1)."""
    if abs(exponent - 1.0) < 1e-9:
        place = np.exp(uniform * math.log(size + 1.0))
    else:
        power = 1.0 - exponent
        place = (1.0 + uniform * ((size + 1.0) ** power - 1.0)) ** (1.0 / power)
    return np.clip(place.astype(np.int64) - 1, 0, size - 1)


def _logits(local: NDArray[np.int64], options: ClickLogOptions) -> Floats:
    """Return first-order weights plus all pairwise products, by (square of sum - sum of squares) / 2."""
    rows, fields = local.shape
    first, total, squares = np.zeros(rows), np.zeros((rows, FACTORS)), np.zeros((rows, FACTORS))
    for number in range(fields):
        drawn = kept_normals(local[:, number], options.seed * 1009 + number)
        first += drawn[:, 0]
        total += drawn[:, 1:]
        squares += np.square(drawn[:, 1:])
    pairs = 0.5 * (np.square(total) - squares).sum(axis=1)
    first_scale, pair_scale = 1.0 / math.sqrt(fields), 1.0 / math.sqrt(FACTORS * fields * (fields - 1) / 2)
    logits: Floats = options.strength * (first_scale * first + pair_scale * pairs) - 0.7
    return logits


def kept_normals(ids: NDArray[np.int64], salt: int) -> Floats:
    """Return `planted_normals` of ids [n], [n, FACTORS + 1], drawing only those that are not kept."""
    drawn: Floats = _hot_normals(salt)[np.minimum(ids, HOT - 1)]
    rest = np.flatnonzero(ids >= HOT)
    drawn[rest] = planted_normals(ids[rest], salt, FACTORS + 1)
    return drawn


@lru_cache(maxsize=64)
def _hot_normals(salt: int) -> Floats:
    return planted_normals(np.arange(HOT), salt, FACTORS + 1)


def planted_normals(ids: NDArray[np.int64], salt: int, count: int) -> Floats:
    """Return `count` standard normal numbers for each id [n], always the same for the same id and salt, [n, count]."""
    columns: NDArray[np.uint64] = np.arange(count, dtype=np.uint64)
    keys: NDArray[np.uint64] = np.multiply(ids.astype(np.uint64)[:, None], count, dtype=np.uint64) + columns
    bits = _mixed(_mixed(keys) ^ _mixed(np.array([salt], dtype=np.uint64)))
    radius = ((bits >> np.uint64(32)).astype(np.float64) + 1.0) / 2.0**32
    angle = (bits & np.uint64(2**32 - 1)).astype(np.float64) * (2.0 * math.pi / 2.0**32)
    normals: Floats = np.sqrt(-2.0 * np.log(radius)) * np.cos(angle)
    return normals


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the splitmix64 output of each state."""
    mixed = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def expected_auc(probabilities: Floats) -> float:
    """Return the AUC of the probabilities themselves, in expectation over independent labels: float in [0.5, 1].

    sum over i != j of p_i (1 - p_j) [p_i > p_j] (ties one half), over sum over i != j of p_i (1 - p_j)
    """
    p = np.sort(probabilities)
    _, start, count = np.unique(p, return_index=True, return_counts=True)
    below = np.concatenate([[0.0], np.cumsum(1.0 - p)])[start]
    values = p[start]
    ordered = (count * values * below).sum()
    tied = (0.5 * count * (count - 1) * values * (1.0 - values)).sum()
    pairs = p.sum() * (1.0 - p).sum() - (p * (1.0 - p)).sum()
    return float((ordered + tied) / pairs)
