"""How a model is trained: the typed settings of the one training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FitSettings:
    """How to train. `epochs` is a cap; training stops earlier when validation stops improving."""

    epochs: int = 30
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """`sgd` has momentum 0.9."""
    weight_decay: float = 0.0
    table_l2: float = 0.0
    """lambda/2 * ||V||^2 summed over whole embedding tables, added to the mean loss (as FuxiCTR does)."""
    table_updates: Literal["dense", "lazy-adam", "rowwise-adagrad"] = "dense"
    """How `nn.Embedding` and `nn.EmbeddingBag` move. The last two cost what a batch touches, not what a table holds;
    `table_l2` then reaches only the rows of the batch."""
    clip_norm: float | None = 10.0
    patience: int = 2
    """Stop after this many epochs without improvement."""
    plateau_factor: float = 0.1
    """Learning rate is multiplied by this at each epoch without improvement."""
    minimum_learning_rate: float = 1e-6
