"""The space of a search: slots in the order of a recipe's steps, each with its options; a genome picks one of each.

space:
  - [none, {linear-low-rank: {energy: {any: [0.9, 0.95]}}}]      a slot: its step may be left out, or have two energies
  - each: [mlp.0, mlp.2]                                         a slot for every place
    of: [none, linear-int8, {rtn: {bits: {any: [8, 4]}}}]
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lessen import files
from lessen.errors import ConfigError
from lessen.method import Method
from lessen.recipe import Recipe, parse_step

Genome = tuple[int, ...]
"""The number of the option that each slot takes."""
NONE, ANY, EACH, OF = "none", "any", "each", "of"
LONGEST = 70
"""Letters of a recipe's name before its hash."""


@dataclass(frozen=True)
class Slot:
    """One place in the order of steps: what may stand there."""

    options: tuple[Method | None, ...]
    """None leaves the step out."""
    group: int
    """Slots of one group are places of one list: equal steps of theirs become one step with several places."""


@dataclass(frozen=True)
class Space:
    """All recipes that a search may try."""

    slots: tuple[Slot, ...]

    @classmethod
    def parse(cls, value: Any, where: str = "space", *, own: bool = False) -> Space:
        """Build a space from its YAML form; `own` lets methods be the user's own code.

        Raises:
            ConfigError: names the slot and what is allowed; a space of one recipe.
        """
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{where}: expected a list of slots, each a list of steps or {{each: places, of: steps}}")
        slots: list[Slot] = []
        for number, item in enumerate(value, 1):
            slots += _slots(item, number, f"{where}: slot {number}", own)
        space = cls(tuple(slots))
        if space.size < 2:
            raise ConfigError(f"{where}: there is nothing to choose; give a slot two options, such as [none, METHOD]")
        return space

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of options of each slot."""
        return tuple(len(slot.options) for slot in self.slots)

    @property
    def size(self) -> int:
        """Number of genomes, the one that leaves everything out included."""
        return math.prod(self.widths)

    @cached_property
    def digest(self) -> str:
        """Digest of all options in their order: a folder of evaluations belongs to one space."""
        told = [[None if o is None else [o.card.name, o.version, o.knobs()] for o in s.options] for s in self.slots]
        return files.digest(json.dumps(told, sort_keys=True).encode())

    def genomes(self) -> Iterator[Genome]:
        """Yield every genome."""
        return itertools.product(*map(range, self.widths))

    def recipe(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome. Its name says its steps and ends in its hash, so that no two share one."""
        steps: list[Method] = []
        for _, group in itertools.groupby(zip(self.slots, genome, strict=True), key=lambda pair: pair[0].group):
            steps += _joined([slot.options[pick] for slot, pick in group])
        bare = Recipe(steps)
        words = ", ".join(_words(step, self._told) for step in steps)
        short = words if len(words) <= LONGEST else words[: LONGEST - 1].rstrip(", ") + "…"
        return Recipe(steps, name=f"{short} #{bare.hash[:6]}" if steps else "")

    def features(self, genomes: Sequence[Genome]) -> np.ndarray:
        """Return what predictors read, float64 [genomes, options]: a one for each option taken, from the full lists.

        A step that is left out is a row of zeros in its slot, so that genomes which make one recipe are one point.
        """
        columns = {
            (at, option): number
            for number, (at, option) in enumerate(
                (at, option) for at, slot in enumerate(self.slots) for option, step in enumerate(slot.options) if step
            )
        }
        found = np.zeros((len(genomes), len(columns)))
        for row, genome in enumerate(genomes):
            for at, option in enumerate(genome):
                if (at, option) in columns:
                    found[row, columns[at, option]] = 1.0
        return found

    @cached_property
    def _told(self) -> Mapping[str, frozenset[str]]:
        """Knobs in which the options of one method differ: those that a name has to say."""
        seen: dict[str, dict[str, set[str]]] = {}
        for slot in self.slots:
            for option in slot.options:
                if option is not None:
                    for knob, value in option.knobs().items():
                        seen.setdefault(option.card.name, {}).setdefault(knob, set()).add(json.dumps(value))
        return {
            name: frozenset(knob for knob, values in knobs.items() if len(values) > 1) for name, knobs in seen.items()
        }


def _slots(item: Any, group: int, where: str, own: bool) -> list[Slot]:
    if isinstance(item, Mapping) and set(item) == {EACH, OF}:
        places = item[EACH]
        if not isinstance(places, list) or not places or not all(isinstance(place, str) for place in places):
            raise ConfigError(f"{where}: `{EACH}` must be a list of places, globs over module paths")
        if len(set(places)) < len(places):
            raise ConfigError(f"{where}: `{EACH}` names a place twice")
        return [Slot(_options(item[OF], f"{where}, place {place!r}", own, place), group) for place in places]
    return [Slot(_options(item, where, own, None), group)]


def _options(value: Any, where: str, own: bool, place: str | None) -> tuple[Method | None, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: expected a list of steps, such as [none, linear-int8]")
    options: list[Method | None] = []
    for item in value:
        if item in (NONE, None):
            options.append(None)
            continue
        for spelled in _spelled(item):
            options.append(parse_step(_placed(spelled, place, where), where, own=own))
    keys = [None if o is None else (o.card.name, json.dumps(o.knobs(), sort_keys=True)) for o in options]
    for at, key in enumerate(keys):
        if key in keys[:at]:
            raise ConfigError(f"{where}: {'none' if key is None else key[0]} stands there twice with the same knobs")
    return tuple(options)


def _spelled(item: Any) -> Iterator[Any]:
    """Yield a step once for each combination of the knobs that say `any`."""
    if not isinstance(item, Mapping) or len(item) != 1:
        yield item
        return
    ((name, knobs),) = item.items()
    if not isinstance(knobs, Mapping):
        yield item
        return
    lists = {knob: _alternatives(value) for knob, value in knobs.items()}
    for values in itertools.product(*lists.values()):
        yield {name: dict(zip(lists, values, strict=True))}


def _alternatives(value: Any) -> list[Any]:
    if isinstance(value, Mapping) and set(value) == {ANY} and isinstance(value[ANY], list):
        return list(value[ANY])
    return [value]


def _placed(step: Any, place: str | None, where: str) -> Any:
    """Return a step that acts on one place only; what is no step stays as it is, to be refused where steps are read."""
    if place is None:
        return step
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, Mapping) or len(step) != 1:
        return step
    ((name, knobs),) = step.items()
    if not isinstance(knobs, Mapping | None):
        return step
    if "only" in (knobs or {}):
        raise ConfigError(f"{where}: {name} says `only` itself; `{EACH}` says where it acts")
    return {name: {**(knobs or {}), "only": [place]}}


def _joined(options: Sequence[Method | None]) -> list[Method]:
    """Return the steps of one slot, or of the places of one list with equal steps made one."""
    steps: dict[str, Method] = {}
    for step in options:
        if step is None:
            continue
        knobs = step.model_dump()
        places = knobs.pop("only", None)
        key = json.dumps([step.card.name, step.model_dump(mode="json", exclude={"only"})], sort_keys=True)
        if key in steps and places:
            before = steps[key].model_dump()["only"]
            steps[key] = step.model_validate({**knobs, "only": (*before, *places)})
        else:
            steps[key] = step
    return list(steps.values())


def _words(step: Method, told: Mapping[str, frozenset[str]]) -> str:
    knobs = step.knobs()
    said = [f"{knob}={_short(knobs[knob])}" for knob in sorted(told.get(step.card.name, ())) if knob in knobs]
    return " ".join([step.card.name, *said])


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
