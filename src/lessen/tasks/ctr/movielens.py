"""Clicks on MovieLens-100k: would this user give this film four stars or more?"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lessen.data.catalogue import get
from lessen.data.movielens import TEST, TRAIN, VALIDATION, Ratings, encode, load_ratings, partition
from lessen.log import SILENT, Log
from lessen.task import Split, TaskOptions
from lessen.tasks.ctr.base import ClickTask
from lessen.tasks.ctr.models import ModelName
from lessen.train.settings import FitSettings

PARTS: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
# without a network to make up for it, the penalty that suits the deep models would shrink these to nothing
SHALLOW = {
    "lr": FitSettings(epochs=40, learning_rate=1e-2, table_l2=1e-5, patience=2),
    "fm": FitSettings(epochs=40, learning_rate=4e-3, table_l2=1e-4, patience=2),
}


class MovieLensOptions(TaskOptions):
    """How the ratings are cut and which reference model is trained."""

    split: Literal["warm", "cold"] = Field(
        "warm", description="warm: each user's later ratings are held out; cold: all later ratings, users mostly unseen"
    )
    model: ModelName = Field("dcnv2", description="reference model")
    dim: int = Field(10, ge=1, le=256, description="width of the embedding vectors")
    history: int = Field(20, ge=0, le=200, description="recent liked items given as a behaviour sequence; 0 for none")


class MovieLensClicks(ClickTask):
    """MovieLens-100k, label rating >= 4, eleven fields, no feature that sees the future (see `data/movielens.py`)."""

    name = "ctr-movielens100k"
    Options: ClassVar[type[TaskOptions]] = MovieLensOptions
    batch_size = 2048
    settings = FitSettings(epochs=20, learning_rate=4e-3, table_l2=1e-2, patience=2)

    def __init__(self, options: MovieLensOptions | None = None, log: Log = SILENT) -> None:
        self.options = options or MovieLensOptions()
        ratings = _ratings(log)
        part = partition(ratings, self.options.split)
        columns, layout = encode(ratings, part, self.options.history)
        splits = {split: columns.select(part == number) for split, number in PARTS.items()}
        super().__init__(self.options.model, layout, splits, {"dim": self.options.dim})
        if self.options.model in SHALLOW:
            self.settings = SHALLOW[self.options.model]
        self.unseen_users = _unseen_share(ratings, part)

    def describe(self) -> dict[str, Any]:
        """Return the name and the options."""
        return {"name": self.name, **self.options.model_dump()}

    def notes(self) -> list[str]:
        """Say how many test rows come from users that training never saw."""
        share = f"{100 * self.unseen_users:.1f} % of the test rows come from users that are unseen in training"
        if self.options.split == "cold":
            return [f"Cold split (a cut in time): {share}; ids of users carry little, compare models with care."]
        return [f"Warm split (each user's later ratings): {share}."]


@lru_cache(maxsize=1)
def _ratings(log: Log) -> Ratings:
    return load_ratings(get("movielens-100k", log))


def _unseen_share(ratings: Ratings, part: NDArray[np.int64]) -> float:
    known = np.isin(ratings.user[part == TEST], ratings.user[part == TRAIN])
    return 1.0 - float(known.mean())
