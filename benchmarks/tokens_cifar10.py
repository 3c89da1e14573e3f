"""What token reductions cost in accuracy on CIFAR-10 at the same multiply-adds, with paired intervals.

    python benchmarks/tokens_cifar10.py share       # DiffRate against ToMe, EViT, GLSim and the random controls
    python benchmarks/tokens_cifar10.py mismatch    # ToCom where the rate differs from the one trained at

`share`: nothing is fine-tuned; DiffRate searches on training pictures. Every method may use the same share of the
model's multiply-adds. Differences to the reference are paired over test pictures, with 95 % bootstrap intervals.

`mismatch`: the reference is fine-tuned at the rate `source` and served at `target`. The loss that could be recovered
is that to the reference fine-tuned at `target` itself.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lessen.environment import environment
from lessen.files import atomic_write, dump_json, sha256
from lessen.method import Context
from lessen.methods.tokens.diffrate import DiffRate
from lessen.methods.tokens.evit import EViT, RandomDrop
from lessen.methods.tokens.glsim import GLSim
from lessen.methods.tokens.tocom import ToCom
from lessen.methods.tokens.tome import RandomMerge, ToMe
from lessen.metrics import bootstrap_weights
from lessen.recipe import Recipe
from lessen.tasks.vision.cifar10 import WEIGHTS, Cifar10Options, Cifar10Task
from lessen.tokens.stored import detach

RESULTS = Path(__file__).parent / "results"


def right(task: Cifar10Task, model: torch.nn.Module) -> np.ndarray:
    """Return 1 for every test picture classified right."""
    scores, targets = task.predictions(model, "test")
    return (scores.argmax(1) == targets).astype(float)


def interval(difference: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95 % bootstrap interval, in percentage points."""
    weights = bootstrap_weights(len(difference), 2000)
    means = weights @ difference / len(difference)
    low, high = np.quantile(means, (0.025, 0.975))
    return 100 * difference.mean(), 100 * low, 100 * high


def share(task: Cifar10Task, arguments: argparse.Namespace) -> dict:
    reference = task.reference()
    base = right(task, reference)
    print(f"reference {100 * base.mean():.2f} %")
    rows, hits = [], {}
    for budget in arguments.shares:
        methods = {
            "diffrate": DiffRate(macs=budget, steps=arguments.steps),
            "tome": ToMe(macs=budget), "evit": EViT(macs=budget), "evit, no fusing": EViT(macs=budget, fuse=False),
            "glsim": GLSim(macs=budget), "random merge": RandomMerge(macs=budget),
            "random drop": RandomDrop(macs=budget),
        }  # fmt: skip
        for name in arguments.methods or methods:
            method, began = methods[name], time.perf_counter()
            compact, (step,) = Recipe([method]).apply(reference, task, seed=arguments.seed)
            hits[name] = right(task, compact)
            change = interval(hits[name] - base)
            rows.append({
                "budget": budget, "method": name, "accuracy": 100 * hits[name].mean(), "change": change,
                "macs_share": step.findings["macs_share"], "tokens": step.findings["tokens_after_block"],
                "config": {k: step.findings[k] for k in ("pruned", "merged", "removed", "rates") if k in step.findings},
                "diffrate_minus_it": interval(hits["diffrate"] - hits[name]),
                "seconds": time.perf_counter() - began,
            })  # fmt: skip
            text = f"{budget:.2f} {name:16} {rows[-1]['accuracy']:6.2f} %  change {change[0]:+.2f} "
            text += f"[{change[1]:+.2f}, {change[2]:+.2f}]  share {rows[-1]['macs_share']:.3f}  "
            text += "DiffRate better by {:+.2f} [{:+.2f}, {:+.2f}]".format(*rows[-1]["diffrate_minus_it"])
            print(text, rows[-1]["tokens"], flush=True)
    return {"reference": 100 * base.mean(), "rows": rows}


def mismatch(task: Cifar10Task, arguments: argparse.Namespace) -> dict:
    reference = task.reference()
    rates = arguments.rates
    tuned = {}
    for rate in rates:
        model, _ = Recipe([ToMe(r=rate, fine_tune_epochs=arguments.epochs)]).apply(reference, task, seed=arguments.seed)
        detach(model)
        tuned[rate] = model
        print(f"fine-tuned at r = {rate}: {100 * served(task, model, rate).mean():.2f} % there", flush=True)
    matched = {rate: served(task, model, rate) for rate, model in tuned.items()}
    rows = []
    for source in rates:
        for target in rates:
            if source == target:
                continue
            plain = served(task, tuned[source], target)
            method = ToCom(r=target, source=source, steps=arguments.steps, scale=arguments.scale, largest=max(rates))
            compact = method.apply(copy.deepcopy(tuned[source]), task, Context(seed=arguments.seed)).eval()
            mended = right(task, compact)
            loss, gain = interval(matched[target] - plain), interval(mended - plain)
            rows.append({
                "source": source, "target": target, "plain": 100 * plain.mean(), "tocom": 100 * mended.mean(),
                "matched": 100 * matched[target].mean(), "loss": loss, "gain": gain,
                "recovered": gain[0] / loss[0] if loss[0] else None,
            })  # fmt: skip
            text = f"trained at {source:2}, served at {target:2}: {rows[-1]['plain']:.2f} -> {rows[-1]['tocom']:.2f} "
            print(text + f"(trained there: {rows[-1]['matched']:.2f}); loss {loss}, gain {gain}", flush=True)
    return {"rows": rows}


def served(task: Cifar10Task, model: torch.nn.Module, rate: int) -> np.ndarray:
    compact, _ = Recipe([ToMe(r=rate)]).apply(model, task)
    return right(task, compact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("share", "mismatch"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6])
    parser.add_argument("--rates", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--methods", nargs="+", help="some of the methods of `share`; default all")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-examples", type=int, default=10_000)
    parser.add_argument("--train-examples", type=int, default=45_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Cifar10Task(
        Cifar10Options(test_examples=arguments.test_examples, train_examples=arguments.train_examples, batch=64)
    )
    result = (share if arguments.what == "share" else mismatch)(task, arguments)
    result |= {
        "command": " ".join(["python", "benchmarks/tokens_cifar10.py", *sys.argv[1:]]), "env": environment(),
        "task": task.describe(), "weights_sha256": sha256(WEIGHTS),
    }  # fmt: skip
    atomic_write(RESULTS / f"tokens_cifar10_{arguments.what}.json", dump_json(result))


if __name__ == "__main__":
    main()
