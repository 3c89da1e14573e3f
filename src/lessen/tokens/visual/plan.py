"""What is left out where: stages of a pruning of visual tokens, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lessen.errors import InputError

Choice = Literal["attention", "uniform", "random", "determinant"]


@dataclass(frozen=True)
class Stage:
    """Tokens of each picture that enter decoder layer `layer` (from 0) and all later ones."""

    layer: int
    share: float = 1.0
    """Share kept of the tokens that the picture has there; int(share * tokens), as published."""
    count: int | None = None
    """Tokens kept of each picture; it takes the place of the share."""
    stride: int = 0
    """Tokens on every `stride`-th row and column of the picture's grid are kept as well; 0: none are."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.layer < 1:
            raise InputError(
                f"stage at layer {self.layer}: the first layer keeps all tokens, because generation counts positions "
                "by its cache; choose a layer from 1"
            )
        if not 0 <= self.share <= 1:
            raise InputError(f"stage at layer {self.layer} keeps a share of {self.share}; it lies between 0 and 1")
        if (self.count is not None and self.count < 0) or self.stride < 0:
            raise InputError(f"stage at layer {self.layer}: count and stride are 0 or more")

    def keep(self, tokens: int) -> int:
        """Return how many of `tokens` the choice keeps. Raises InputError for a count beyond them."""
        if self.count is None:
            return int(self.share * tokens)
        if self.count > tokens:
            raise InputError(
                f"stage at layer {self.layer} keeps {self.count} tokens of each picture, and one has {tokens} there; "
                "keep fewer, or give a share"
            )
        return self.count


@dataclass(frozen=True)
class VisualPruning:
    """Stages from shallow to deep, and how tokens are chosen."""

    stages: tuple[Stage, ...]
    choice: Choice = "attention"
    rope: bool = True
    """Whether the attention row that scores tokens is taken with rotary positions (FastV) or without (FEATHER)."""
    seed: int = 0
    """Of the random choice."""

    def __post_init__(self) -> None:
        """Refuse stages that do not follow one another, and unknown choices."""
        layers = [stage.layer for stage in self.stages]
        if not layers or layers != sorted(set(layers)):
            raise InputError(f"stages at layers {layers}: give at least one, each deeper than the one before")
        if self.choice not in get_args(Choice):
            raise InputError(f"choice {self.choice!r} is not one of {', '.join(get_args(Choice))}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise InputError(f"seed {self.seed!r} is no whole number from 0 to {2**31 - 1}")

    @property
    def scored(self) -> bool:
        """Whether the choice reads attention."""
        return self.choice in ("attention", "determinant")

    def config(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"stages": [asdict(stage) for stage in self.stages]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VisualPruning:
        """Build from `config()`. Raises ValueError, TypeError or InputError for values that make no sense."""
        values = dict(config)
        stages = values.pop("stages", ())
        if not isinstance(stages, Sequence) or not all(isinstance(stage, Mapping) for stage in stages):
            raise ValueError(f"stages = {stages!r} is no list of stages")
        return cls(tuple(Stage(**stage) for stage in stages), **values)

    def check_depth(self, depth: int, where: str) -> None:
        """Raise InputError when a stage lies beyond the decoder."""
        deepest = self.stages[-1].layer
        if deepest >= depth:
            raise InputError(f"stage at layer {deepest}: {where} has layers 0..{depth - 1}")
