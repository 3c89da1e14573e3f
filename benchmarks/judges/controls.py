"""The control of every suite: a planted fault that it must catch, and a harmless change at which it must stay silent.

    python -m benchmarks.judges.controls [--seeds 20] [--only flips] [--out benchmarks/results]

Writes judges_controls.json: for each suite how often the fault was caught and how often the null was not silent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.judges import examinee, pairs, planted, seers
from lessen.environment import environment
from lessen.judges import get_judge
from lessen.judges.suite import Section, Suite
from lessen.task import Task

RESULTS = Path(__file__).parents[1] / "results"
Both = tuple[Section, Section]
"""What the suite says of the planted fault and of the null."""


def outcomes(name: str, fault: Any, null: Any, task: Task | None = None, **options: Any) -> Both:
    """Ask a suite about two pairs of outcomes."""
    judge = get_judge({"name": name, **options}, task=task or pairs.Given())
    assert isinstance(judge, Suite)
    return judge.compare(*fault), judge.compare(*null)


def models(name: str, task: Task, reference: nn.Module, fault: nn.Module, null: nn.Module, **options: Any) -> Both:
    """Ask a suite about two compact models."""
    found = []
    for compact in (fault, null):
        judge = get_judge({"name": name, **options}, task=task)
        assert isinstance(judge, Suite)
        before = judge.outcomes(reference)
        found.append(judge.compare(before, judge.outcomes(compact)))
    return found[0], found[1]


def metrics(seed: int) -> Both:
    return outcomes("metrics", pairs.classes(seed, 3000, 0.05, 0.0), pairs.classes(seed, 3000, 0.02, 0.08))


def flips(seed: int) -> Both:
    return outcomes("flips", pairs.classes(seed, 3000, 0.06, 0.12), pairs.classes(seed, 3000, 0.02, 0.08))


def slices(seed: int) -> Both:
    g = np.random.default_rng([seed, 1])
    field = g.integers(0, 40, 3000)
    task = pairs.Given({"test": {"city": field, "hour": g.integers(0, 24, 3000)}})
    fault = pairs.classes(seed, 3000, 0.5, 0.0, where=field == 7)
    return outcomes("slices", fault, pairs.classes(seed, 3000, 0.05, 0.1), task)


def rare(seed: int) -> Both:
    g = np.random.default_rng([seed, 2])
    test, train = (np.minimum(g.zipf(1.3, n), 3000) for n in (6000, 24_000))
    task = pairs.Given({"test": {"item": test}, "train": {"item": train}}, pairs.AUC_ONLY)
    seen = np.bincount(train, minlength=3001)[test]
    return outcomes("rare", pairs.clicks(seed, 6000, np.where(seen < 5, 3.0, 0.1)), pairs.clicks(seed, 6000, 0.5), task)


def calibration(seed: int) -> Both:
    task = pairs.Given(metrics=pairs.AUC_ONLY)
    return outcomes("calibration", pairs.clicks(seed, 3000, 0.0, scale=2.0), pairs.clicks(seed, 3000, 0.2), task)


def ood(seed: int) -> Both:
    task = planted.blobs(seed)
    reference = task.reference(seed)
    fault = planted.disturbed(reference, 0.0)
    with torch.no_grad():  # scores shrink: no answer flips, but every threshold on them is wrong
        fault[2].weight *= 0.5
        fault[2].bias *= 0.5
    return models("ood", task, reference, fault, planted.disturbed(reference, 1e-4, seed), fit=100)


def shortcut(seed: int) -> Both:
    task, best, easy = planted.known_cues(seed)
    return models("shortcut", task, best, easy, planted.disturbed(best, 0.01, seed))


def complexity(seed: int) -> Both:
    task, model = planted.deep(seed)
    return models("complexity", task, model, planted.without_blocks(model), planted.disturbed(model, 1e-3, seed))


def representation(seed: int) -> Both:
    task, model = planted.two_features(seed)
    cut = planted.rank_cut(model, task.splits["test"][0], 1)
    return models("representation", task, model, cut, planted.disturbed(model, 1e-4, seed))


def multiple_choice(seed: int) -> Both:
    with tempfile.TemporaryDirectory() as folder:
        answers = examinee.examination(Path(folder), 40 + seed)
        known, forgets, same = (examinee.Examinee(answers, share) for share in (0.1, 0.3, 0.1))
        return models("multiple-choice", examinee.Reading(), known, forgets, same, data=folder, most=None)


def association(seed: int) -> Both:
    binds, bag, again = seers.Seer(), seers.Seer(binds=False), seers.Seer(noise=0.01)
    return models("association", seers.Looking(), binds, bag, again, draws=1, seed=seed)


def conditional(seed: int) -> Both:
    hears, deaf, again = seers.Seer(), seers.Seer(listens=0.2), seers.Seer(noise=0.01)
    return models("conditional", seers.Matching(), hears, deaf, again, seed=seed)


def attribution(seed: int) -> Both:
    task, one, other = planted.two_patches(seed)
    return models("attribution", task, one, other, planted.disturbed(one, 1e-3, seed), steps=50)


def video(seed: int) -> Both:
    watchers = planted.Watcher(8), planted.Watcher(1), planted.Watcher(8)
    return models("video", planted.Watching(), *watchers, seed=seed)


def width(seed: int) -> Both:
    task, model = planted.evened(seed)
    cut = planted.disturbed(model, 0.0)
    with torch.no_grad():  # most of the last features are gone
        cut.blocks[-1][0].weight[1:] = 0
        cut.blocks[-1][0].bias[1:] = 0
    return models("width", task, model, cut, planted.disturbed(model, 1e-3, seed))


CONTROLS: dict[str, Callable[[int], Both]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        metrics,
        flips,
        slices,
        rare,
        calibration,
        ood,
        shortcut,
        complexity,
        representation,
        multiple_choice,
        association,
        conditional,
        attribution,
        video,
        width,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="part of a suite's name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = given.out / "judges_controls.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else {}
    for name, control in CONTROLS.items():
        if given.only not in name:
            continue
        start = time.perf_counter()
        found = [control(seed) for seed in range(given.seeds)]
        rows[name] = {
            "seeds": given.seeds,
            "fault caught": sum(bool(fault.caught) for fault, _ in found),
            "null not silent": sum(bool(null.caught) for _, null in found),
            "example": found[0][0].caught[0] if found[0][0].caught else "",
            "seconds": time.perf_counter() - start,
        }
        print(name, rows[name], flush=True)
    command = f"python -m benchmarks.judges.controls --seeds {given.seeds}"
    record = {"command": command, "environment": environment(1), "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
