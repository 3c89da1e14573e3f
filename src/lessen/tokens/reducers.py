"""Reducers: which plan each block makes. Frozen, JSON-configured, without parameters; weights stay as they are."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter
from torch import Tensor

from lessen.architectures.tower_block import Positions, TowerBlock, turn
from lessen.errors import InputError
from lessen.tokens import plans, schedules, scores
from lessen.tokens.rows import Plan
from lessen.tokens.state import TokenState

REDUCERS: dict[str, type[Reducer]] = {}
LARGEST = 2**31 - 1


@dataclass
class Signals:
    """What a block offers to decide by, computed on demand."""

    parts: TowerBlock
    hidden: Tensor
    """Tokens after the attention residual, [B,N,C]."""
    bias: Tensor | None
    """What attention added to the logits of each key, [B,1,1,N]."""
    layer: int
    positions: Positions | None = None
    """Rotations of the patches, where the tower turns queries and keys."""
    hidden_tokens: Tensor | None = None
    """Tokens that stand for nothing (padding), boolean [B,N]; None: there are none."""

    def keys(self) -> Tensor:
        """Return the keys as attention compares them, [B,N,H,d]."""
        keys = self.parts.keys()
        return keys if self.positions is None else turn(keys, self.positions)

    def queries(self) -> Tensor:
        """Return the queries as attention compares them, [B,N,H,d]."""
        queries = self.parts.queries()
        return queries if self.positions is None else turn(queries, self.positions)

    def score(self, scorer: scores.Scorer, seed: int) -> Tensor:
        """Return scores [B,N]."""
        if scorer == "random":
            noise = scores.random_scores(self.hidden.shape[0], self.hidden.shape[1], seed, self.layer)
            return noise.to(self.hidden.device)
        if scorer == "class_similarity":
            return scores.class_similarity(self.hidden)
        if scorer == "class_attention":
            return scores.class_attention(self.queries(), self.keys(), self.bias)
        return scores.received_attention(self.queries(), self.keys(), self.bias, self.hidden_tokens)


@dataclass(frozen=True)
class Reducer(ABC):
    """Decides, block by block, how tokens are reduced."""

    kind: ClassVar[str]
    takes_padding: ClassVar[bool] = True
    """Whether batches may hold padding tokens, which then weigh nothing and go first."""
    proportional: bool = True
    """Add log(size) to the logits of each key (proportional attention of ToMe)."""

    def __init_subclass__(cls) -> None:
        """Register the subclass under its kind."""
        REDUCERS[cls.kind] = cls

    def __post_init__(self) -> None:
        """Refuse counts that make no sense."""
        for name, value in asdict(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, (int, float)) and not 0 <= number <= LARGEST for number in numbers):
                raise ValueError(f"{self.kind}: {name} = {value!r} makes no sense; numbers must be 0 to {LARGEST}")

    @property
    @abstractmethod
    def depth(self) -> int:
        """Blocks that the schedule speaks of."""

    @property
    def drops(self) -> bool:
        """Whether some tokens vanish without a trace."""
        return False

    @property
    def needs_class(self) -> bool:
        """Whether a class token must exist."""
        return False

    @abstractmethod
    def counts(self, tokens: int, protected: int) -> list[int]:
        """Return the tokens left after each block. Raises InputError for a schedule that does not fit."""

    @abstractmethod
    def plan(self, signals: Signals, state: TokenState) -> Plan | None:
        """Return the plan of one block, or None to leave its tokens alone."""

    def config(self) -> dict[str, Any]:
        """Return JSON values that `reducer_from` turns back into this reducer."""
        return {"reducer": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}


def reducer_from(config: Mapping[str, Any]) -> Reducer:
    """Build a reducer from its JSON form.

    Raises:
        ValueError: unknown kind or field, or a value of the wrong type or out of range.
    """
    values = dict(config)
    kind = values.pop("reducer", None)
    if kind not in REDUCERS:
        raise ValueError(f"unknown reducer {kind!r}; known: {', '.join(sorted(REDUCERS))}")
    cls = REDUCERS[kind]
    unknown = sorted(set(values) - {field.name for field in fields(cls)})
    if unknown:
        raise ValueError(f"reducer {kind} has no field {', '.join(unknown)}")
    made: Reducer = TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    return made


@dataclass(frozen=True)
class Merge(Reducer):
    """Merge the most similar pairs of even and odd tokens: ToMe (arXiv 2210.09461), or random pairs as its control."""

    kind = "merge"
    removed: tuple[int, ...] = ()
    """Pairs merged in each block."""
    metric: Literal["keys", "hidden", "random"] = "keys"
    seed: int = 0

    @property
    def depth(self) -> int:
        """Blocks that the schedule speaks of."""
        return len(self.removed)

    def counts(self, tokens: int, protected: int) -> list[int]:
        """Return the tokens left after each block."""
        return schedules.merged_counts(tokens, self.removed, protected)

    def plan(self, signals: Signals, state: TokenState) -> Plan | None:
        """Match and merge."""
        batch, tokens, _ = signals.hidden.shape
        removed = min(self.removed[signals.layer], max(0, (tokens - state.protected) // 2))
        if removed <= 0:
            return None
        if self.metric == "random":
            noise = signals.score("random", self.seed)
            source, target = plans.match_random(batch, tokens, removed, state.protected, noise)
        else:
            metric = signals.keys().sum(2) if self.metric == "keys" else signals.hidden
            return plans.merge_similar(metric, removed, state.protected, signals.hidden_tokens)
        return plans.merge_pairs(tokens, source, target, state.protected)


@dataclass(frozen=True)
class Keep(Reducer):
    """Keep the best share of the tokens and drop or fuse the rest: EViT (arXiv 2202.07800), and random dropping."""

    kind = "keep"
    proportional: bool = False
    rates: tuple[float, ...] = ()
    """Share of the unprotected tokens kept in each block; 1 leaves them alone."""
    scorer: scores.Scorer = "class_attention"
    fuse: bool = True
    seed: int = 0

    @property
    def depth(self) -> int:
        """Blocks that the schedule speaks of."""
        return len(self.rates)

    @property
    def drops(self) -> bool:
        """Whether some tokens vanish without a trace."""
        return not self.fuse and any(rate < 1 for rate in self.rates)

    @property
    def needs_class(self) -> bool:
        """Whether a class token must exist."""
        return self.scorer in ("class_attention", "class_similarity")

    def counts(self, tokens: int, protected: int) -> list[int]:
        """Return the tokens left after each block."""
        return schedules.kept_counts(tokens, self.rates, protected, self.fuse)

    def plan(self, signals: Signals, state: TokenState) -> Plan | None:
        """Score, keep, and fuse the rest if asked to."""
        tokens = signals.hidden.shape[1]
        (after,) = schedules.kept_counts(tokens, self.rates[signals.layer : signals.layer + 1], state.protected, False)
        if after == tokens:
            return None
        score = signals.score(self.scorer, self.seed)
        return plans.keep_best(score, after, state.protected, self.fuse, signals.hidden_tokens)


@dataclass(frozen=True)
class RankMerge(Reducer):
    """Sort by class attention, prune the tail and merge some of the rest: DiffRate (arXiv 2305.17997)."""

    kind = "rank-merge"
    takes_padding = False
    pruned: tuple[int, ...] = ()
    """Tokens left by pruning in each block, protected ones included."""
    merged: tuple[int, ...] = ()
    """Tokens left by merging in each block, at most those left by pruning."""
    matching: Literal["tail", "pairs"] = "tail"
    """What is merged: the lowest ranks into their most similar higher one (the released code), or the most similar
    pairs whatever their rank, as in ToMe (the paper's text)."""

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        super().__post_init__()
        if len(self.pruned) != len(self.merged):
            raise InputError(f"{len(self.pruned)} pruning counts for {len(self.merged)} merging counts")

    @property
    def depth(self) -> int:
        """Blocks that the schedule speaks of."""
        return len(self.pruned)

    @property
    def drops(self) -> bool:
        """Whether some tokens vanish without a trace."""
        smallest = list(zip(self.pruned, (self.merged[0], *self.merged), strict=False))
        return any(pruned < before for pruned, before in smallest)

    @property
    def needs_class(self) -> bool:
        """Whether a class token must exist."""
        return True

    def counts(self, tokens: int, protected: int) -> list[int]:
        """Return the tokens left after each block; counts never rise."""
        least = min((*self.pruned, *self.merged), default=0)
        if least > tokens:
            raise InputError(
                f"the schedule keeps {least} tokens and more, and there are {tokens}: nothing would be reduced; "
                "it was made for larger inputs, search one for these"
            )
        left: list[int] = []
        for block, (pruned, merged) in enumerate(zip(self.pruned, self.merged, strict=True)):
            if min(pruned, merged) < max(1, protected):
                raise InputError(
                    f"block {block} would keep {min(pruned, merged)} tokens of which {protected} must stay"
                )
            pruned = min(tokens, pruned)
            tokens = min(pruned, merged)
            if self.matching == "pairs" and pruned - tokens > (pruned - protected) // 2:
                raise InputError(
                    f"block {block} cannot merge {pruned - tokens} pairs of {pruned} tokens ({protected} protected); "
                    f"prune more, or merge at most {(pruned - protected) // 2}"
                )
            if self.matching == "tail" and tokens == protected < pruned:
                raise InputError(f"block {block} has nobody left to merge with; prune to {protected}, or merge fewer")
            left.append(tokens)
        return left

    def plan(self, signals: Signals, state: TokenState) -> Plan | None:
        """Rank, prune, merge."""
        tokens = signals.hidden.shape[1]
        pruned = min(tokens, self.pruned[signals.layer])
        merged = min(pruned, self.merged[signals.layer])
        if merged == tokens:
            return None
        if self.matching == "tail":
            score = signals.score("class_attention", 0)
            return plans.rank_and_merge(score, signals.hidden, pruned, merged, state.protected)
        keys = signals.keys().sum(2)  # cosines do not need the mean over heads divided
        if pruned == tokens:
            return plans.merge_similar(keys, pruned - merged, state.protected)
        kept = plans.keep_best(signals.score("class_attention", 0), pruned, state.protected)
        if pruned == merged:
            return kept
        return kept.then(plans.merge_similar(kept.features(keys), pruned - merged, state.protected))


@dataclass(frozen=True)
class Pool(Reducer):
    """Average the patches of disjoint windows in one block: DeCo (arXiv 2405.20985), inside or after the tower."""

    kind = "pool"
    takes_padding = False
    blocks: int = 0
    at: int = 0
    """Block after whose attention the grid is pooled; the last one pools what the tower gives out."""
    grid: tuple[int, int] = (1, 1)
    target: tuple[int, int] = (1, 1)

    @property
    def depth(self) -> int:
        """Blocks that the schedule speaks of."""
        return self.blocks

    def counts(self, tokens: int, protected: int) -> list[int]:
        """Return the tokens left after each block."""
        height, width = self.grid
        if tokens != protected + height * width:
            raise InputError(f"the tower has {tokens - protected} patches, the grid says {height}x{width}")
        after = plans.pool_grid(self.grid, self.target, protected, 1).kept
        return [after if block >= self.at else tokens for block in range(self.blocks)]

    def plan(self, signals: Signals, state: TokenState) -> Plan | None:
        """Pool in the chosen block."""
        if signals.layer != self.at:
            return None
        if signals.hidden.shape[1] != state.protected + self.grid[0] * self.grid[1]:
            raise InputError(
                f"{signals.hidden.shape[1] - state.protected} patches are no {self.grid[0]}x{self.grid[1]} grid; "
                "give pictures of the size the reduction was made for"
            )
        return plans.pool_grid(self.grid, self.target, state.protected, signals.hidden.shape[0])


@dataclass(frozen=True)
class Nothing(Reducer):
    """Leave every token alone; what a patch is checked against."""

    kind = "nothing"
    blocks: int = 0

    @property
    def depth(self) -> int:
        """Blocks that the schedule speaks of."""
        return self.blocks

    def counts(self, tokens: int, protected: int) -> list[int]:  # noqa: ARG002 - the base class\'s signature
        """Return the same number after each block."""
        return [tokens] * self.blocks

    def plan(self, signals: Signals, state: TokenState) -> Plan | None:  # noqa: ARG002 - the base class's signature
        """Return None."""
        return None


def check_fits(reducer: Reducer, depth: int, protected: int, has_class: bool, tokens: int | None, where: str) -> None:
    """Raise InputError when a reducer cannot run on a tower."""
    if reducer.depth != depth:
        raise InputError(f"the schedule speaks of {reducer.depth} blocks, {where} has {depth}")
    if reducer.needs_class and not has_class:
        raise InputError(
            f"{reducer.kind} scores tokens by the class token, and {where} has none; "
            "use merging, or the scorer received_attention"
        )
    if tokens is not None:
        reducer.counts(tokens, protected)


def sizes_matter(reducer: Reducer) -> bool:
    """Say whether token sizes are tracked: only when something is merged or attention uses them."""
    return reducer.proportional or isinstance(reducer, (Merge, RankMerge, Pool))
