"""How many tokens to copy: expected accepted tokens against the measured cost of a longer pass.

A copied token is worth its chance of being accepted; a row in the forward pass costs what this machine was measured
to take. Chances are learned while decoding, for each length of agreement, and also from copies that were looked up
but not drafted, so that drafting stops where copies do not hold and starts again where they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lessen.decoding.copying import BREAK, LONGEST_MATCH, Place, TextMemory, TokenIndex
from lessen.decoding.cost import CostCurve

LONGEST_DRAFT = 48

KEY_LENGTH = 2
"""Tokens that must agree by default. The paper uses 3; since a doubtful copy is drafted only where the pass is cheap
enough, two are better on every replayed set."""

_MATCH_CHANCES = {1: 0.08, 2: 0.30, 3: 0.40, 4: 0.55, 5: 0.70, 7: 0.80, 10: 0.88, 15: 0.93, 24: 0.96}
"""Prior chance that the next copied token is right, from this many agreeing tokens on (fitted to
replayed answers of SmolLM2-135M to prompts that are not in the benchmark)."""

_RESUMED_CHANCES = (0.20, 0.60, 0.75)
"""The same right after a substitution inside a long copy, by tokens that agreed since."""

_LONG_COPY = 8
_PRIOR_WEIGHT = 6.0
_MEMORY = 40.0
"""Observations that one chance remembers; older ones fade."""


def _bucket_of_match(matched: int) -> int:
    return max((bound for bound in _MATCH_CHANCES if bound <= matched), default=min(_MATCH_CHANCES))


_BUCKETS = [_bucket_of_match(matched) for matched in range(LONGEST_MATCH + 1)]


class Acceptance:
    """Running estimates of the chance that the next copied token is the one the model chooses."""

    def __init__(self) -> None:
        self._hits: dict[object, float] = {}
        self._trials: dict[object, float] = {}
        for bound, chance in _MATCH_CHANCES.items():
            self._start(bound, chance)
        for agreed, chance in enumerate(_RESUMED_CHANCES):
            self._start((agreed, True), chance)
            self._start((agreed, False), 0.5 * chance)

    def _start(self, bucket: object, chance: float) -> None:
        self._trials[bucket] = _PRIOR_WEIGHT
        self._hits[bucket] = _PRIOR_WEIGHT * chance

    @staticmethod
    def _bucket(place: Place, step: int) -> object:
        if place.resumed is not None and place.resumed + step < len(_RESUMED_CHANCES):
            return place.resumed + step, place.matched >= _LONG_COPY
        return _BUCKETS[min(LONGEST_MATCH, place.matched + step)]

    def chance(self, place: Place, step: int = 0) -> float:
        """Return the chance that token `step` of the draft from `place` holds, given that those before it do."""
        bucket = self._bucket(place, step)
        return self._hits[bucket] / self._trials[bucket]

    def survival(self, place: Place, length: int) -> list[float]:
        """Return, for each of `length` draft tokens, the chance that it and all before it are accepted."""
        chances, alive = [], 1.0
        for step in range(length):
            alive *= self.chance(place, step)
            chances.append(alive)
        return chances

    def learn(self, place: Place, step: int, held: bool) -> None:
        """Record whether token `step` from `place` was the one the model chose."""
        bucket = self._bucket(place, step)
        if self._trials[bucket] >= _MEMORY:
            self._trials[bucket] *= 1 - 1 / _MEMORY
            self._hits[bucket] *= 1 - 1 / _MEMORY
        self._trials[bucket] += 1
        self._hits[bucket] += held


@dataclass(frozen=True)
class Candidate:
    """A draft that could be made for one sequence, and the chance that each token and all before it hold."""

    tokens: list[int]
    survival: list[float]


NOTHING = Candidate([], [])


class Copier:
    """What one sequence can copy: its own text, remembered texts, and the copy in progress."""

    def __init__(
        self,
        prompt: Sequence[int],
        key_length: int = KEY_LENGTH,
        memory: TextMemory | None = None,
        stops: frozenset[int] = frozenset(),
    ) -> None:
        self.index = TokenIndex(key_length, prompt)
        self.acceptance = Acceptance()
        self._memory = memory
        self._stops = stops
        self._copying: Place | None = None
        self._place: Place | None = None

    def candidate(self, limit: int) -> Candidate:
        """Return the best draft of at most `limit` tokens; it ends with the first end-of-sequence token in it."""
        place = self._place = self._choose()
        if place is None:
            return NOTHING
        tokens = place.draft(min(limit, LONGEST_DRAFT))
        for number, token in enumerate(tokens):
            if token in self._stops:
                del tokens[number + 1 :]
                break
        return Candidate(tokens, self.acceptance.survival(place, len(tokens)))

    def _choose(self) -> Place | None:
        text = self.index.tokens
        if len(text) < self.index.key_length:
            return None
        places = [self._copying] if self._copying is not None else []
        places += reversed(self.index.find(text))
        if self._memory is not None:
            places += reversed(self._memory.find(text))
        return max(places, key=self.acceptance.chance, default=None)

    def observe(self, emitted: Sequence[int]) -> None:
        """Learn from the tokens the model chose after the last candidate, whether or not they were drafted."""
        self.index.extend(emitted)
        place, self._copying = self._place, None
        if place is None:
            return
        for step, token in enumerate(emitted):
            copied = place.source[place.start + step]
            if copied == BREAK:
                return
            held = copied == token
            self.acceptance.learn(place, step, held)
            if not held:
                self._copying = self._after_substitution(place, step)
                return
        self._copying = self._advanced(place, len(emitted))

    def _advanced(self, place: Place, steps: int) -> Place | None:
        start, resumed = place.start + steps, place.resumed
        if resumed is not None:
            resumed = resumed + steps if resumed + steps < len(_RESUMED_CHANCES) else None
        return self._if_inside(Place(place.source, start, place.matched + steps, resumed))

    def _after_substitution(self, place: Place, step: int) -> Place | None:
        if place.resumed is not None and place.resumed + step == 0:
            return None  # two changed tokens side by side: the copy is over
        agreed = min(_LONG_COPY, place.matched + step)  # what lies before a change says less about what follows it
        return self._if_inside(Place(place.source, place.start + step + 1, agreed, 0))

    @staticmethod
    def _if_inside(place: Place) -> Place | None:
        return place if place.start < len(place.source) and place.source[place.start] != BREAK else None


def plan(candidates: Sequence[Candidate], curve: CostCurve, longest: int = 256) -> list[int]:
    """Return how many tokens of each candidate to draft, for one pass over all sequences together.

    Tokens are taken in order of their chance, whichever sequence they belong to, as long as
    `expected tokens - extra seconds * tokens a second of a pass without drafts` grows. Chances fall along a draft, so
    each sequence keeps a prefix. (Charging the time at the rate achieved so far was tried and was worse in replay.)

    Args:
        longest: drafted tokens of one pass at most.
    """
    rows = len(candidates)
    plain = curve.seconds(rows)
    rate = rows / plain
    ranked = sorted(
        (-chance, number)
        for number, candidate in enumerate(candidates)
        for chance in candidate.survival
        if chance > 0.0
    )
    best, best_value, value = 0, 0.0, 0.0
    for taken, (chance, _) in enumerate(ranked[:longest], start=1):
        value -= chance
        gain = value - rate * (curve.seconds(rows + taken) - plain)
        if gain > best_value:
            best, best_value = taken, gain
    lengths = [0] * rows
    for _, number in ranked[:best]:
        lengths[number] += 1
    return lengths
