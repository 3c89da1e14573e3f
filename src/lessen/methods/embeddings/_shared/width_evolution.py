"""Evolution over lists of widths that never loses the best list it has seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Evolution:
    """Settings of a search: sizes of a generation and how much of it is new. Parents are the best seen so far."""

    fields: int
    widest: int
    generations: int
    first: int = 20
    mutants: int = 10
    children: int = 10
    parents: int = 15
    probability: float = 0.1

    def run(
        self, fitness: Callable[[Widths], float], draws: random.Random, repair: Callable[[Widths], Widths] = tuple
    ) -> tuple[Widths, float, int]:
        """Return (best list ever scored, its fitness, lists scored); a list is scored once however often it comes up.

        Args:
            repair: turns a list into one that is allowed, such as one that uses up a budget.
        """
        known: dict[Widths, float] = {}
        population = [repair(self.draw(draws)) for _ in range(self.first)]
        for generation in range(self.generations):
            for member in population:
                if member not in known:
                    known[member] = fitness(member)
            if generation + 1 < self.generations:
                best = sorted(known, key=lambda member: -known[member])[: self.parents]
                population = [repair(child) for child in self.offspring(best, draws)]
        winner = max(known, key=lambda member: known[member])
        return winner, known[winner], len(known)

    def draw(self, draws: random.Random) -> Widths:
        """Return random widths below a random bound, so that narrow lists occur as often as wide ones."""
        bound = draws.randint(1, self.widest)
        return tuple(draws.randint(1, bound) for _ in range(self.fields))

    def offspring(self, parents: list[Widths], draws: random.Random) -> list[Widths]:
        """Return mutants and children of `parents`; the parents themselves are not touched."""
        made = [self._mutant(draws.choice(parents), draws) for _ in range(self.mutants)]
        for _ in range(self.children):
            head, tail = draws.choice(parents), draws.choice(parents)
            cut = draws.randint(1, self.fields - 1) if self.fields > 1 else 0
            made.append(head[:cut] + tail[cut:])
        return made

    def _mutant(self, parent: Widths, draws: random.Random) -> Widths:
        return tuple(draws.randint(1, self.widest) if draws.random() < self.probability else width for width in parent)
