"""What token reductions cost in accuracy on CIFAR-10 at the same multiply-adds, with paired intervals.

    python -m benchmarks.tokens.cifar10 [--shares 0.6 0.5 0.4] [--seeds 0 1 2]

DiffRate against ToMe, EViT and the random controls. Nothing is fine-tuned; DiffRate searches on training pictures and
chooses on validation pictures, once for each seed, and is judged by the mean over seeds. Every method may use the same
share of the model's multiply-adds. Cross-entropy is told beside accuracy: it changes with every picture.

Differences are paired over test pictures, with 95 % bootstrap intervals. What is finished is kept in the cache folder
by its settings, so a run that was stopped goes on where it was; `--budget-seconds` stops it in good order. The result
file holds the newest run of each share.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from benchmarks.tokens.speed import packed
from lessen.data.cache import cache_folder
from lessen.environment import environment
from lessen.files import atomic_write, dump_json, sha256
from lessen.method import Method
from lessen.methods.tokens.diffrate import DiffRate
from lessen.methods.tokens.evit import EViT, RandomDrop
from lessen.methods.tokens.tome import RandomMerge, ToMe
from lessen.metrics import bootstrap_weights
from lessen.recipe import Recipe
from lessen.tasks.vision.cifar10 import WEIGHTS, Cifar10Options, Cifar10Task
from lessen.tokens import RankMerge, reduce_tokens

RESULTS = Path(__file__).parents[1] / "results"
DRAWS = 2000


class Kept:
    """Finished pieces of one benchmark with one group of settings, and the time that may still be used."""

    def __init__(self, what: str, settings: dict, seconds: float) -> None:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = cache_folder() / "benchmarks" / f"tokens-{what}-{key}"
        self.end = time.monotonic() + seconds

    def get(self, name: str, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the tensors of a piece, made now if they are not there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            if time.monotonic() > self.end:
                sys.exit(f"time is used up before {name!r}; run the same command again to go on")
            began = time.perf_counter()
            tensors = make() | {"seconds": torch.tensor(time.perf_counter() - began)}
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, save_tensors({k: t.contiguous() for k, t in tensors.items()}))
        return load_tensors(path.read_bytes())


@lru_cache(maxsize=1)
def embedded(task: Cifar10Task) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the reference's tokens of the test pictures before its blocks, which no method here changes; labels."""
    reference, batches = task.reference(), list(task.batches("test"))
    with torch.inference_mode():
        return [reference.embed(pictures) for pictures, _ in batches], torch.cat([labels for _, labels in batches])


def outcomes(task: Cifar10Task, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return for every test picture whether it is classified right, and its cross-entropy."""
    tokens, labels = embedded(task)
    quick = packed(model)  # the same float32 products in another order of memory
    with torch.inference_mode():
        logits = torch.cat([quick.head(quick.encode(piece)[:, 0]) for piece in tokens])
    logits = logits.clone().double()
    loss = F.nll_loss(logits.log_softmax(-1), labels, reduction="none")
    return {"right": (logits.argmax(1) == labels).double(), "loss": loss}


def interval(difference: torch.Tensor, factor: float = 100.0) -> tuple[float, float, float]:
    """Return the mean and its 95 % bootstrap interval, in percentage points by default."""
    values = difference.numpy()
    means = bootstrap_weights(len(values), DRAWS) @ values / len(values)
    low, high = np.quantile(means, (0.025, 0.975))
    return factor * values.mean(), factor * low, factor * high


def recovered(gain: torch.Tensor, loss: torch.Tensor) -> tuple[float, float, float] | None:
    """Return mean(gain) / mean(loss) with its 95 % bootstrap interval, or None where nothing is lost for certain."""
    if interval(loss)[1] <= 0:
        return None
    weights = bootstrap_weights(len(gain), DRAWS)
    ratios = (weights @ gain.numpy()) / (weights @ loss.numpy())
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(gain.mean() / loss.mean()), float(low), float(high)


def share(task: Cifar10Task, arguments: argparse.Namespace, kept: Kept) -> dict:
    reference = task.reference()
    base = kept.get("reference", lambda: outcomes(task, reference))
    print(f"reference {100 * base['right'].mean():.2f} %, cross-entropy {base['loss'].mean():.4f}")
    rows = []
    for budget in arguments.shares:
        ours: dict[str, torch.Tensor] = {}
        for name, methods in candidates(budget, arguments).items():
            if name not in (arguments.methods or [name]):
                continue
            found = [
                measured(task, reference, method, f"{budget} {name}, seed {seed}", seed, kept)
                for seed, method in methods.items()
            ]
            mean = {key: torch.stack([one[key] for one in found]).mean(0) for key in ("right", "loss")}
            ours = ours or mean
            rows.append(
                {
                    "budget": budget,
                    "method": name,
                    "accuracy": float(100 * mean["right"].mean()),
                    "change": interval(mean["right"] - base["right"]),
                    "cross_entropy": float(mean["loss"].mean()),
                    "cross_entropy_change": interval(mean["loss"] - base["loss"], 1.0),
                    "accuracies": [float(100 * one["right"].mean()) for one in found],
                    "macs_share": max(float(one["macs_share"]) for one in found),
                    "tokens": [one["tokens"].tolist() for one in found],
                    "pruned": [one["pruned"].tolist() for one in found],
                    "seconds": [float(one["seconds"]) for one in found],
                }
            )
            if ours is not mean:
                rows[-1]["diffrate_minus_it"] = interval(ours["right"] - mean["right"])
                rows[-1]["cross_entropy_it_minus_diffrate"] = interval(mean["loss"] - ours["loss"], 1.0)
            show(rows[-1])
    return {"reference": float(100 * base["right"].mean()), "cross_entropy": float(base["loss"].mean()), "rows": rows}


def candidates(budget: float, arguments: argparse.Namespace) -> dict[str, dict[int, Method]]:
    """Return the methods by name and seed, DiffRate first; what draws nothing runs once."""
    search = {"macs": budget, "steps": arguments.steps}
    return {
        "diffrate": {seed: DiffRate(**search, polish=arguments.polish) for seed in arguments.seeds},
        "tome": {0: ToMe(macs=budget)},
        "evit": {0: EViT(macs=budget)},
        "random merge": {seed: RandomMerge(macs=budget) for seed in arguments.seeds},
        "random drop": {seed: RandomDrop(macs=budget) for seed in arguments.seeds},
        "diffrate, search alone": {0: DiffRate(**search, polish=0)},
        "diffrate, as released": {0: DiffRate(**search, polish=0, matching="tail")},
    }


def measured(
    task: Cifar10Task, reference: torch.nn.Module, method: Method, name: str, seed: int, kept: Kept
) -> dict[str, torch.Tensor]:
    """Return the outcomes of a method on the test pictures, with what it did."""

    def compress() -> dict[str, torch.Tensor]:
        _, (step,) = Recipe([method]).apply(reference, task, seed=seed)
        found = step.findings
        counts = found.get("pruned", found["tokens_after_block"])
        return {
            "counts": torch.tensor(found["tokens_after_block"]),
            "pruned": torch.tensor(counts),
            "macs_share": torch.tensor(found["macs_share"]),
        }

    def test() -> dict[str, torch.Tensor]:
        if isinstance(method, DiffRate):  # the schedule is known: put it in instead of searching once more
            model = scheduled(reference, method, schedule)
        else:
            model, _ = Recipe([method]).apply(reference, task, seed=seed)
        return outcomes(task, model)

    schedule = kept.get(f"{name} schedule", compress)
    found = kept.get(name, test)
    return {
        **found,
        "tokens": schedule["counts"],
        "pruned": schedule["pruned"],
        "macs_share": schedule["macs_share"],
        "seconds": schedule["seconds"],
    }


def scheduled(reference: torch.nn.Module, method: DiffRate, schedule: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return a copy of the reference with the counts that a search found."""
    model = copy.deepcopy(reference)
    pruned, merged = (tuple(schedule[key].tolist()) for key in ("pruned", "counts"))
    reduce_tokens(model, RankMerge(method.proportional, pruned, merged, method.matching))
    return model


def show(row: dict) -> None:
    change, better = row["change"], row.get("diffrate_minus_it")
    text = f"{row['budget']:.2f} {row['method']:22} {row['accuracy']:6.2f} %  change {change[0]:+.2f} "
    text += f"[{change[1]:+.2f}, {change[2]:+.2f}]  share {row['macs_share']:.3f}"
    text += "  DiffRate better by {:+.2f} [{:+.2f}, {:+.2f}]".format(*better) if better else ""
    nats = row.get("cross_entropy_it_minus_diffrate")
    text += "  {:+.4f} [{:+.4f}, {:+.4f}] nats".format(*nats) if nats else ""
    print(text, row["tokens"], f"{max(row['seconds']):.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6, 0.5, 0.4], help="of the multiply-adds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the searches and the controls")
    parser.add_argument("--methods", nargs="+", help="some of the methods, diffrate first; default all")
    parser.add_argument("--steps", type=int, default=60, help="of DiffRate's gradient search")
    parser.add_argument("--polish", type=int, default=60, help="schedules that DiffRate tries after it")
    parser.add_argument("--budget-seconds", type=float, default=1e9, help="begin no new piece after this time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Cifar10Task(Cifar10Options(batch=64))
    settings = {"steps": arguments.steps, "polish": arguments.polish, "weights": sha256(WEIGHTS)}
    result = share(task, arguments, Kept("share", settings, arguments.budget_seconds))
    result |= {
        "command": " ".join(["python", "-m", "benchmarks.tokens.cifar10", *sys.argv[1:]]),
        "env": environment(),
        "task": task.describe(),
        "weights_sha256": sha256(WEIGHTS),
    }
    target = RESULTS / "tokens_cifar10_share.json"
    runs = json.loads(target.read_text())["runs"] if target.exists() else []
    others = [run for run in runs if not {row["budget"] for row in run["rows"]} & set(arguments.shares)]
    atomic_write(target, dump_json({"runs": [*others, result]}))


if __name__ == "__main__":
    main()
