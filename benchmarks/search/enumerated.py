"""A space measured whole, and how few of its points a search needs to find its front, beside Optuna and pymoo.

    python -m benchmarks.search.enumerated measure [--out benchmarks/results]
    python -m benchmarks.search.enumerated compare [--seeds 20] [--out benchmarks/results]

`measure` trains the demo's click model and judges, on validation rows, every choice of a width for each of its five
largest linear layers and of its table rows: 4,096 models. Each option is applied by its method once, and the modules
that it made are put together: their bytes add up, the model is judged whole. `compare` lets searches look points up.
Peers need `optuna` and `pymoo`; what is not installed is left out and said.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lessen.environment import environment
from lessen.methods.sites import state_bytes
from lessen.search import Measured, Space, propose
from lessen.search.pareto import hypervolume
from lessen.tasks import get_task

RESULTS = Path(__file__).parents[1] / "results"
TASK = {"name": "ctr-movielens100k", "split": "warm", "model": "dcnv2"}
WIDTHS = [{"rtn": {"bits": {"any": [8, 4, 3]}, "group": 32, "table_bits": None, "min_weights": 64}}]
ROWS = [{"emb-rowwise-quant": {"bits": {"any": [8, 4, 2]}, "min_rows": 10}}]
LAYERS = 5
BATCH = 8
"""Recipes of a round, as `lessen search` has it."""
ENOUGH = 0.98
"""Share of the area of the whole front."""
Genome = tuple[int, ...]
Table = dict[Genome, tuple[float, float]]


def space_of(places: list[str]) -> Space:
    """Return the space: four options for each place, and for the rows."""
    return Space.parse([{"each": places, "of": ["none", *WIDTHS]}, ["none", *ROWS]])


def measure(out: Path) -> None:
    """Judge every genome and write the table."""
    torch.set_num_threads(1)
    task = get_task(TASK)
    model = task.reference(seed=0)
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear and m.weight.numel() >= 64}
    places = sorted(linears, key=lambda name: -linears[name].weight.numel())[:LAYERS]
    space = space_of(places)
    parts = [_parts(model, task, space, slot) for slot in range(len(space.slots))]
    whole, base = state_bytes(model), task.score(model)
    rows = []
    for genome in space.genomes():
        size = whole
        current = _assembled(model, [parts[at][pick] for at, pick in enumerate(genome)])
        size += sum(parts[at][pick][1] for at, pick in enumerate(genome))
        rows.append([*genome, size / whole, base - task.score(current)])
    found = {
        "task": TASK, "places": places, "metric": task.primary, "reference": base, "bytes": whole,
        "env": environment(1), "rows": [[*map(int, r[:-2]), round(r[-2], 6), round(r[-1], 6)] for r in rows],
    }  # fmt: skip
    (out / "search_space.json").write_text(json.dumps(found) + "\n")


def _parts(model: nn.Module, task: Any, space: Space, slot: int) -> list[tuple[dict[str, nn.Module], int]]:
    """Return, for each option of a slot, the modules that it makes by path and the bytes that it adds."""
    found: list[tuple[dict[str, nn.Module], int]] = []
    for option, step in enumerate(space.slots[slot].options):
        if step is None:
            found.append(({}, 0))
            continue
        genome = [next(at for at, o in enumerate(s.options) if o is None) for s in space.slots]
        genome[slot] = option
        made, _ = space.recipe(tuple(genome)).apply(model, task)
        before, after = dict(model.named_modules()), dict(made.named_modules())
        changed = {p: m for p, m in after.items() if type(m) is not type(before.get(p)) and p in before}
        top = {p: m for p, m in changed.items() if not any(p.startswith(f"{q}.") for q in changed if q != p)}
        found.append((top, state_bytes(made) - state_bytes(model)))
    return found


def _assembled(model: nn.Module, parts: list[tuple[dict[str, nn.Module], int]]) -> nn.Module:
    made = copy.deepcopy(model)
    for modules, _ in parts:
        for path, module in modules.items():
            parent, _, name = path.rpartition(".")
            owner: Any = made.get_submodule(parent)
            owner._modules[name] = module
    return made.eval()


# -- searches --------------------------------------------------------------------------------------------------------
def ours(space: Space, table: Table, count: int, seed: int, batch: int = BATCH) -> Iterator[Genome]:
    """Yield the genomes that lessen measures, in order, in rounds of `batch`."""
    measured: dict[Genome, Measured] = {}
    while len(measured) < count:
        fresh = propose(space, measured, min(batch, count - len(measured)), seed=seed)
        if not fresh:
            return
        for genome in fresh:
            measured[genome] = Measured(*table[genome])
            yield genome


def blind(space: Space, table: Table, count: int, seed: int) -> Iterator[Genome]:
    """Yield genomes by lot, none twice."""
    genomes = list(table)
    for row in np.random.default_rng(seed).permutation(len(genomes))[:count]:
        yield genomes[row]


def tpe(space: Space, table: Table, count: int, seed: int) -> Iterator[Genome]:
    """Yield what Optuna's multi-objective TPE asks for; a genome that it asks for again is looked up for nothing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.TPESampler(seed=seed))
    seen: set[Genome] = set()
    for _ in range(2 * count):
        trial = study.ask()
        picks = [trial.suggest_categorical(f"s{at}", list(range(w))) for at, w in enumerate(space.widths)]
        genome = tuple(int(pick) for pick in picks)
        study.tell(trial, list(table[genome]))
        if genome not in seen:
            seen.add(genome)
            yield genome
        if len(seen) >= count:
            return


def nsga2(space: Space, table: Table, count: int, seed: int) -> Iterator[Genome]:
    """Yield what pymoo's NSGA-II asks for, with its operators for choices, population 20."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    asked: list[Genome] = []

    class Lookup(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(len(space.widths), 2, xl=0, xu=np.array(space.widths) - 1, vtype=int)

        def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
            rows = [tuple(int(pick) for pick in row) for row in x]
            asked.extend(rows)
            out["F"] = np.array([table[row] for row in rows])

    mutation = PM(prob_var=1.0 / len(space.widths), eta=3, vtype=float, repair=RoundingRepair())
    algorithm = NSGA2(20, sampling=IntegerRandomSampling(), crossover=UX(), mutation=mutation)
    minimize(Lookup(), algorithm, ("n_eval", 4 * count), seed=seed, verbose=False)
    seen: dict[Genome, None] = dict.fromkeys(asked)
    yield from list(seen)[:count]


SEARCHES: dict[str, Callable[[Space, Table, int, int], Iterator[Genome]]] = {
    "lessen": ours,
    "lessen, rounds of 16": partial(ours, batch=2 * BATCH),
    "Optuna TPE": tpe,
    "pymoo NSGA-II": nsga2,
    "by lot": blind,
}


def compare(out: Path, seeds: int) -> None:
    """Run every search for every seed; write how much of the front each finds and how soon."""
    found = json.loads((out / "search_space.json").read_text())
    space = space_of(found["places"])
    table: Table = {tuple(row[:-2]): (row[-2], row[-1]) for row in found["rows"] if any(row[:-2])}
    values = np.array(list(table.values()))
    corner = np.array([1.0, 0.02])
    full, tenth = hypervolume(values, corner), len(table) // 10
    path = out / "search_enumerated.json"
    result: dict[str, Any] = json.loads(path.read_text())["searches"] if path.is_file() else {}
    told = {"space": len(table), "tenth": tenth, "given": 2 * tenth, "corner": corner.tolist()}
    for name, walk in SEARCHES.items():
        row = result.setdefault(name, {"share_at_tenth": [], "needed": [], "cpu_seconds": 0.0})
        try:
            for seed in range(len(row["needed"]), seeds):  # a run that was stopped goes on where it stood
                start = time.process_time()
                curve = _curve(walk(space, table, 2 * tenth, seed), table, corner, full)
                spent = row["cpu_seconds"] * seed + time.process_time() - start
                row["cpu_seconds"] = round(spent / (seed + 1), 2)
                row["share_at_tenth"].append(round(float(curve[:tenth].max()), 5))
                row["needed"].append(int(np.argmax(curve >= ENOUGH)) + 1 if (curve >= ENOUGH).any() else None)
                path.write_text(json.dumps({**told, "searches": result, "env": environment(1)}, indent=1) + "\n")
                print(name, seed, row["needed"][-1], flush=True)
        except ImportError as error:
            del result[name]
            print(f"{name} is left out: {error.name} is not installed")


def _curve(walk: Iterator[Genome], table: Table, corner: np.ndarray, full: float) -> np.ndarray:
    """Return the share of the whole front's area after each look; ends when it is found and a tenth was looked at."""
    values: list[tuple[float, float]] = []
    shares: list[float] = []
    for genome in itertools.islice(walk, len(table)):
        values.append(table.get(genome, (2.0, 2.0)))
        shares.append(hypervolume(np.array(values), corner) / full)
        if shares[-1] >= ENOUGH and len(shares) >= len(table) // 10:
            break
    return np.array(shares)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["measure", "compare"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    measure(asked.out) if asked.what == "measure" else compare(asked.out, asked.seeds)


if __name__ == "__main__":
    main()
