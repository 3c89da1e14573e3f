"""Races beside full judging: how often they name the same winner, and how many rows they read.

    python -m benchmarks.search.racing [--recipes 48] [--repeats 200] [--out benchmarks/results]

Trains a click model once, applies recipes drawn from the space of `studies/search-demo.yaml`, and keeps what each
answers on every validation row. A repeat draws 16 of them and an order of the rows, and lets them race for a goal: the
one that loses least within a cost, or the cheapest within a loss. The winner on all rows is known from all of them.
About 3 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen import files
from lessen.artifact.folder import stored_size
from lessen.environment import environment
from lessen.errors import LessenError
from lessen.metrics import Outcomes
from lessen.search.goal import Goal
from lessen.search.racing import race
from lessen.search.space import Space
from lessen.stored.serving import served
from lessen.tasks import get_task

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TASK = {"name": "ctr-clicklog", "ids": 20_000, "rows": 60_000, "held_out": 10_000, "epochs": 4}
ENTRANTS = 16
GOALS = ("stored_bytes<=0.3x", "auc>=-0.003", "stored_bytes<=0.5x, auc>=-0.001")


def answers(count: int, seed: int = 0) -> tuple[Any, Outcomes, list[tuple[str, float, Outcomes]]]:
    """Return the task, what the reference answers on validation rows, and name, cost and answers of each recipe."""
    torch.set_num_threads(1)
    space = Space.parse(
        files.parse_yaml((ROOT / "studies" / "search-demo.yaml").read_text(), "search-demo.yaml")["space"]
    )
    task = get_task(TASK)
    model = task.reference(seed=seed)
    base, whole = task.outcomes(model, "validation"), stored_size(model, model, task.describe())
    draw, known, found = np.random.default_rng(seed), set[str](), []
    while len(found) < count:
        recipe = space.recipe(tuple(int(draw.integers(width)) for width in space.widths))
        if recipe.hash in known or not recipe.steps:
            continue
        known.add(recipe.hash)
        try:
            compact, _ = recipe.apply(model, task, seed=seed)
        except LessenError as error:
            print(f"{recipe.name}: {error}", flush=True)
            continue
        with served(compact):
            outcomes = task.outcomes(compact, "validation")
        found.append((recipe.name, stored_size(compact, model, task.describe()) / whole, outcomes))
    return task, base, found


def part(outcomes: Outcomes, order: np.ndarray, share: float) -> Outcomes:
    """Return the first share of the rows in an order."""
    rows = order[: max(2, round(share * len(order)))]
    group = None if outcomes.group is None else outcomes.group[rows]
    return Outcomes({name: values[rows] for name, values in outcomes.columns.items()}, group)


def simulate(
    task: Any, base: Outcomes, found: list[tuple[str, float, Outcomes]], budget: str, repeats: int
) -> dict[str, Any]:
    """Return how often races for a budget name the winner of all rows, and the share of the rows that they read."""
    goal, metric = Goal.parse(budget, "stored_bytes", task.metrics), task.metrics[task.primary]
    whole = np.array([metric(base) - metric(outcomes) for _, _, outcomes in found])
    costs = np.array([cost for _, cost, _ in found])
    same, read, missed = 0, [], []
    for repeat in range(repeats):
        draw = np.random.default_rng([repeat, 7])
        chosen = draw.choice(len(found), min(ENTRANTS, len(found)), replace=False)
        order = draw.permutation(len(base))

        def judge(entrant: int | None, share: float, chosen: Any = chosen, order: Any = order) -> Outcomes:
            return part(base if entrant is None else found[chosen[entrant]][2], order, share)

        finish = race([float(costs[one]) for one in chosen], judge, metric, goal)
        best = int(np.argmin(goal.scores(costs[chosen], whole[chosen])))
        same += finish.winner == best
        read.append(float(np.mean(finish.shares)))
        missed.append(float(whole[chosen[finish.winner]] - whole[chosen[best]]))
    return {
        "budget": budget,
        "repeats": repeats,
        "same_winner": round(same / repeats, 4),
        "rows_read": round(float(np.mean(read)), 4),
        "most_rows_read": round(float(np.max(read)), 4),
        "largest_gap_to_the_winner": round(float(np.max(np.abs(missed))), 6),
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    task, base, found = answers(asked.recipes)
    result = {
        "task": TASK,
        "rows": len(base),
        "recipes": len(found),
        "entrants": ENTRANTS,
        "goals": [],
        "env": environment(1),
    }
    for budget in GOALS:
        result["goals"].append(simulate(task, base, found, budget, asked.repeats))
        print(result["goals"][-1], flush=True)
        files.atomic_write(asked.out / "search_racing.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
