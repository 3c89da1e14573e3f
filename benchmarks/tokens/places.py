"""Which visual tokens are kept: answers about places and others at equal multiply-adds, beside random and even choices.

    python -m benchmarks.tokens.places [--pictures 120]

The model of the task vision-language-grid, 144 tokens a picture, seven questions each. Every method is brought to the
same share of the decoder's multiply-adds (its score row counted); random tokens are drawn three times. Differences are
paired by picture, and their 95 % intervals are over pictures. The budgets were not tuned, nor the layers: those
published, scaled to six layers, except in the rows called late and that of FEATHER from layer 1 (1.5 is the published
depth scaled; 2 is taken elsewhere).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lessen.data.scenes import LOCATION, SIDE, STILL
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.method import Method
from lessen.methods.tokens.deco import DeCo
from lessen.methods.tokens.determinantal_tokens import DeterminantalTokens
from lessen.methods.tokens.fastv import FastV
from lessen.methods.tokens.feather import Feather
from lessen.methods.tokens.random_tokens import RandomTokens
from lessen.methods.tokens.uniform_tokens import UniformTokens
from lessen.recipe import Recipe
from lessen.tasks.multimodal.grid import GridOptions, GridTask
from lessen.tokens.visual.stored import pruning_of

RESULTS = Path(__file__).parents[1] / "results" / "tokens_places.json"
BUDGETS, LOW = (0.45, 0.65), 0.3
"""Shares of the decoder's multiply-adds; the last is below what FEATHER can reach from the published depth."""
DRAWS = 3


def rows_of_the_study() -> list[tuple[str, Method | None, int]]:
    """Return (name, method, draws) of every row."""
    rows: list[tuple[str, Method | None, int]] = [("whole", None, 1)]
    for budget in BUDGETS:
        at = f"{budget:.0%}"
        rows += [
            (f"feather, {at}", Feather(macs=budget), 1),
            (f"fastv, {at}", FastV(macs=budget), 1),
            (f"fastv without rope, {at}", FastV(macs=budget, rope=False), 1),
            (f"determinantal, {at}", DeterminantalTokens(macs=budget), 1),
            (f"random, {at}", RandomTokens(macs=budget), DRAWS),
            (f"uniform, {at}", UniformTokens(macs=budget), 1),
        ]
    for name, method, draws in (
        ("feather from layer 1", Feather(layer=1, macs=LOW), 1),
        ("fastv", FastV(macs=LOW), 1),
        ("fastv without rope", FastV(macs=LOW, rope=False), 1),
        ("determinantal", DeterminantalTokens(macs=LOW), 1),
        ("random", RandomTokens(macs=LOW), DRAWS),
        ("uniform", UniformTokens(macs=LOW), 1),
    ):
        rows.append((f"{name}, {LOW:.0%}", method, draws))
    late = {"layer": 3, "keep": 0.1}
    rows += [("fastv, late", FastV(**late), 1), ("random, late", RandomTokens(**late), DRAWS)]
    return [*rows, ("deco 6 x 6, not trained", DeCo(window=2), 1)]


def run(method: Method | None, draw: int, model: nn.Module, task: GridTask) -> dict[str, Any]:
    """Return right answers of every question, and what the method costs."""
    findings: dict[str, Any] = {}
    if method is not None:
        model, (step,) = Recipe([method]).apply(model, task, seed=draw)
        findings = step.findings
    places: list[torch.Tensor] = []
    patch = pruning_of(model)
    outcomes = task.outcomes(model)
    if patch is not None:
        with torch.no_grad():
            task.forward(model, task.example_batch())
        kept = patch.last.kept[patch.pruning.stages[0].layer]
        for picture in patch.last.layout.pictures:  # type: ignore[union-attr]
            own = kept.columns[picture.row][kept.real[picture.row]] - picture.start
            places.append(own[(own >= 0) & (own < picture.tokens)] // SIDE)
    return {
        "right": (outcomes["score"].argmax(1) == outcomes["target"]).astype(int).tolist(),
        "kv_bytes": task.costs(outcomes)["kv_bytes"],
        "macs_share": findings.get("prefill_macs_share"),
        "tokens": findings.get("tokens_by_layer"),
        "mean_row": float(torch.cat(places).float().mean()) if places else None,
    }


def interval(values: np.ndarray) -> list[float]:
    """Return mean and the ends of its 95 % interval over pictures."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return [float(values.mean()), float(values.mean() - half), float(values.mean() + half)]


def summed(right: np.ndarray) -> dict[str, list[float]]:
    """Return the share of right answers [pictures, kinds] about places, about the rest, and of each kind."""
    location = [STILL.index(kind) for kind in LOCATION]
    others = [place for place in range(len(STILL)) if place not in location]
    parts = {"location": right[:, location].mean(1), "others": right[:, others].mean(1)}
    parts |= {kind: right[:, place] for place, kind in enumerate(STILL)}
    return {name: interval(values) for name, values in parts.items()}


def main() -> None:
    """Run every row and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=120)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = GridTask(GridOptions(about="stills", questions=given.pictures, batch=21))
    model = task.reference()
    rows, right = [], {}
    for name, method, draws in rows_of_the_study():
        found = [run(method, draw, model, task) for draw in range(draws)]
        table = np.mean([one.pop("right") for one in found], 0).reshape(-1, len(STILL))
        right[name] = table
        rows.append({"name": name, "draws": draws, **found[0], "right": summed(table)})
        share = {part: round(rows[-1]["right"][part][0], 3) for part in ("location", "others", *STILL)}
        print(name, share, found[0]["macs_share"], found[0]["mean_row"], flush=True)
    differences = {}
    for budget in BUDGETS:
        at = f"{budget:.0%}"
        for other in ("fastv", "fastv without rope", "determinantal", "random", "uniform"):
            change = right[f"feather, {at}"] - right[f"{other}, {at}"]
            differences[f"feather over {other}, {at}"] = summed(change)
    for other in ("fastv", "fastv without rope", "determinantal", "random", "uniform"):
        change = right[f"feather from layer 1, {LOW:.0%}"] - right[f"{other}, {LOW:.0%}"]
        differences[f"feather from layer 1 over {other}, {LOW:.0%}"] = summed(change)
    for name, parts in differences.items():
        print(name, {part: [round(value, 3) for value in parts[part]] for part in ("location", "others")})
    done = {
        "command": " ".join(["python", "-m", "benchmarks.tokens.places", *sys.argv[1:]]),
        "settings": vars(given), "visual_tokens": SIDE**2, "rows": rows, "differences": differences,
        "load": os.getloadavg(), "threads": 1, "env": environment(),
        "transformers": __import__("transformers").__version__,
    }  # fmt: skip
    atomic_write(RESULTS, dump_json(done))


if __name__ == "__main__":
    main()
