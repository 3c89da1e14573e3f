"""Leaving out the seeds of a recipe whose verdict is certain already; the rule is in `frontier/early.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lessen.errors import TaskError
from lessen.frontier.early import early_verdict
from lessen.frontier.frontier import DEFAULT_MARGIN
from lessen.frontier.records import REFERENCE, outcome_path
from lessen.frontier.verdict import UNKNOWN, no_better_than_chance, paired_difference
from lessen.metrics import Floats
from lessen.metrics.storage import read_jackknife, read_outcomes
from lessen.study.folder import StudyFolder
from lessen.study.jobs import STANDARDS
from lessen.study.schema import Study

FILE = "stopped.json"


class Stopping:
    """Looks at every recipe after each seed, and remembers which are decided."""

    def __init__(self, study: Study, folder: StudyFolder) -> None:
        self.study, self.folder = study, folder
        self.decided: dict[str, tuple[int, str]] = {}
        """By recipe: after how many seeds, and the verdict."""

    def skips(self, recipe: str, seed: int) -> bool:
        """Say whether a seed of a recipe need not be run."""
        return recipe in self.decided and self.study.seeds.index(seed) >= self.decided[recipe][0]

    def look(self, seed: int, references: Mapping[int, Mapping[str, Any]]) -> None:
        """Judge every recipe by its seeds up to this one, as far as their outcomes are there."""
        seen = self.study.seeds[: self.study.seeds.index(seed) + 1]
        before = {each: found for each in seen if (found := self._values(REFERENCE, each)) is not None}
        if len(seen) < 2 or len(before) < len(seen):
            return
        standard = (references.get(seed) or {}).get(STANDARDS, {}).get(self.study.task.primary, {})
        doubt = "no better than chance" if no_better_than_chance(standard.get("chance"), before, self._up) else ""
        for recipe in self.study.recipes:
            after = {each: found for each in seen if (found := self._values(recipe.name, each)) is not None}
            if recipe.name in self.decided or len(after) < len(seen):
                continue
            units = read_outcomes(outcome_path(self.folder.root, REFERENCE, seed))
            least = float(standard.get("resolution") or 0.0)
            difference = paired_difference(before, after, 0 if units is None else len(units), self._up, least)
            margin = self.study.margin if self.study.margin is not None else DEFAULT_MARGIN
            verdict = early_verdict(difference, margin, len(self.study.seeds), least, doubt).verdict
            if verdict != UNKNOWN:
                self.decided[recipe.name] = len(seen), verdict

    def write(self) -> list[str]:
        """Keep what was left out and why, and return it as remarks for the reader of the report."""
        seeds: Sequence[int] = self.study.seeds
        record = {name: {"seeds": list(seeds[:count]), "verdict": said} for name, (count, said) in self.decided.items()}
        self.folder.write_json(self.folder.root / FILE, record)
        return [
            f"{name} was not run on {len(seeds) - count} of {len(seeds)} seeds: after {count} its verdict was certain "
            f"({said}); its interval is that of the seeds that were run."
            for name, (count, said) in self.decided.items()
        ]

    @property
    def _up(self) -> bool:
        return self.study.task.metrics[self.study.task.primary].higher_is_better

    def _values(self, recipe: str, seed: int) -> Floats | None:
        try:
            return read_jackknife(outcome_path(self.folder.root, recipe, seed)).get(self.study.task.primary)
        except TaskError:
            return None
