"""What token reductions cost in accuracy on CIFAR-10 at the same multiply-adds, with paired intervals.

    python benchmarks/tokens_cifar10.py share       # DiffRate against ToMe, EViT and the random controls
    python benchmarks/tokens_cifar10.py mismatch    # ToCom where the rate differs from the one trained at

`share`: nothing is fine-tuned; DiffRate searches on training pictures and chooses on validation pictures. Every method
may use the same share of the model's multiply-adds.

`mismatch`: the reference, trained without merging, is served at other rates. What is lost is the difference to the
reference served as it was trained; recovered is the share that one plug-in, distilled without labels, brings back.
Test cross-entropy says more than accuracy here, which changes by a few pictures only.

Differences are paired over test pictures, with 95 % bootstrap intervals. What is finished is kept in the cache folder
by its settings, so a run that was stopped goes on where it was; `--budget-seconds` stops it in good order.
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
from tokens_speed import packed

from lessen.data.cache import cache_folder
from lessen.environment import environment
from lessen.files import atomic_write, dump_json, sha256
from lessen.method import Context
from lessen.methods.tokens.common import look
from lessen.methods.tokens.diffrate import DiffRate
from lessen.methods.tokens.evit import EViT, RandomDrop
from lessen.methods.tokens.glsim import GLSim
from lessen.methods.tokens.tocom import ToCom
from lessen.methods.tokens.tome import RandomMerge, ToMe
from lessen.metrics import bootstrap_weights
from lessen.recipe import Recipe
from lessen.tasks.vision.cifar10 import WEIGHTS, Cifar10Options, Cifar10Task
from lessen.tokens import RankMerge, reduce_tokens
from lessen.tokens.compensate import Compensator

RESULTS = Path(__file__).parent / "results"
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


# -- the same multiply-adds -----------------------------------------------------------------------------------------
def share(task: Cifar10Task, arguments: argparse.Namespace, kept: Kept) -> dict:
    reference = task.reference()
    base = kept.get("reference", lambda: outcomes(task, reference))["right"]
    print(f"reference {100 * base.mean():.2f} %")
    rows, hits = [], {}
    for budget in arguments.shares:
        methods = {
            "diffrate": DiffRate(macs=budget, steps=arguments.steps, polish=arguments.polish),
            "tome": ToMe(macs=budget), "evit": EViT(macs=budget), "evit, no fusing": EViT(macs=budget, fuse=False),
            "glsim": GLSim(macs=budget), "random merge": RandomMerge(macs=budget),
            "random drop": RandomDrop(macs=budget),
            "diffrate, search alone": DiffRate(macs=budget, steps=arguments.steps, polish=0),
            "diffrate, as released": DiffRate(macs=budget, steps=arguments.steps, polish=0, matching="tail"),
        }  # fmt: skip
        for name in arguments.methods or methods:
            found = measured(task, reference, methods[name], f"{budget} {name}", arguments.seed, kept)
            hits[name] = found["right"]
            rows.append({
                "budget": budget, "method": name, "accuracy": float(100 * hits[name].mean()),
                "change": interval(hits[name] - base), "macs_share": float(found["macs_share"]),
                "tokens": found["tokens"].tolist(), "pruned": found["pruned"].tolist(),
                "seconds": float(found["seconds"]),
                **({} if name == "diffrate" else {"diffrate_minus_it": interval(hits["diffrate"] - hits[name])}),
            })  # fmt: skip
            show(rows[-1])
    return {"reference": float(100 * base.mean()), "rows": rows}


def measured(
    task: Cifar10Task, reference: torch.nn.Module, method: object, name: str, seed: int, kept: Kept
) -> dict[str, torch.Tensor]:
    """Return the outcomes of a method on the test pictures, with what it did."""

    def compress() -> dict[str, torch.Tensor]:
        _, (step,) = Recipe([method]).apply(reference, task, seed=seed)
        found = step.findings
        counts = found.get("pruned", found["tokens_after_block"])
        return {
            "counts": torch.tensor(found["tokens_after_block"]), "pruned": torch.tensor(counts),
            "macs_share": torch.tensor(found["macs_share"]),
        }  # fmt: skip

    def test() -> dict[str, torch.Tensor]:
        if isinstance(method, DiffRate):  # the schedule is known: put it in instead of searching once more
            model = scheduled(reference, method, schedule)
        else:
            model, _ = Recipe([method]).apply(reference, task, seed=seed)
        return outcomes(task, model)

    schedule = kept.get(f"{name} schedule", compress)
    found = kept.get(name, test)
    return {**found, "tokens": schedule["counts"], "pruned": schedule["pruned"], "macs_share": schedule["macs_share"],
            "seconds": schedule["seconds"]}  # fmt: skip


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
    print(text, row["tokens"], f"{row['seconds']:.0f} s", flush=True)


# -- trained at one rate, served at another -------------------------------------------------------------------------
def mismatch(task: Cifar10Task, arguments: argparse.Namespace, kept: Kept) -> dict:
    reference = task.reference()
    base = kept.get("reference", lambda: outcomes(task, reference))
    rows = []
    for seed in arguments.seeds:
        plug_in = distilled(task, reference, seed, arguments, kept)
        for target in arguments.rates:
            plain = served(task, reference, target, f"at {target}", kept)
            model = copy.deepcopy(reference)
            folded = Compensator(model, largest=arguments.largest, rank=arguments.rank)
            folded.load_state_dict(plug_in)
            folded.fold(0, target, arguments.scale)
            mended = served(task, model, target, f"at {target} compensated, seed {seed}", kept)
            row = {"source": 0, "target": target, "seed": seed}
            for key, sign, factor in (("right", 1, 100.0), ("loss", -1, 1.0)):
                loss, gain = sign * (base[key] - plain[key]), sign * (mended[key] - plain[key])
                row[key] = {
                    "matched": float(factor * base[key].mean()), "plain": float(factor * plain[key].mean()),
                    "compensated": float(factor * mended[key].mean()), "lost": interval(loss, factor),
                    "gained": interval(gain, factor), "recovered": recovered(gain, loss),
                }  # fmt: skip
                print(f"seed {seed}, 0 -> {target}", key, row[key])
            rows.append(row)
    return {"rows": rows}


def distilled(
    task: Cifar10Task, reference: torch.nn.Module, seed: int, arguments: argparse.Namespace, kept: Kept
) -> dict[str, torch.Tensor]:
    """Return the weights of the plug-in, distilled on the reference for all pairs of rates at once."""

    def distil() -> dict[str, torch.Tensor]:
        method = ToCom(
            r=max(arguments.rates), source=0, steps=arguments.steps, scale=arguments.scale, largest=arguments.largest,
            rank=arguments.rank, learning_rate=arguments.learning_rate,
        )  # fmt: skip
        return method.distil(look(copy.deepcopy(reference), task, Context(seed=seed))).state_dict()

    weights = kept.get(f"plug-in {seed}", distil)
    return {name: tensor for name, tensor in weights.items() if name != "seconds"}


def served(task: Cifar10Task, model: torch.nn.Module, rate: int, name: str, kept: Kept) -> dict[str, torch.Tensor]:
    """Return the outcomes of a model whose blocks merge `rate` pairs each."""
    return kept.get(name, lambda: outcomes(task, Recipe([ToMe(r=rate)]).apply(model, task)[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("share", "mismatch"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6])
    parser.add_argument("--rates", type=int, nargs="+", default=[4, 7, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the distillation")
    parser.add_argument("--methods", nargs="+", help="some of the methods of `share`, diffrate first; default all")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--polish", type=int, default=40)
    parser.add_argument("--scale", type=float, default=1.0, help="of the plug-in")
    parser.add_argument("--rank", type=int, default=2, help="of the plug-in")
    parser.add_argument("--largest", type=int, default=10, help="rate up to which the plug-in is distilled")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the distillation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-examples", type=int, default=10_000)
    parser.add_argument("--train-examples", type=int, default=45_000)
    parser.add_argument("--budget-seconds", type=float, default=1e9, help="begin no new piece after this time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Cifar10Task(
        Cifar10Options(test_examples=arguments.test_examples, train_examples=arguments.train_examples, batch=64)
    )
    ignored = ("budget_seconds", "methods", "shares", "rates" if arguments.what == "share" else "seeds", "seeds")
    settings = {k: v for k, v in vars(arguments).items() if k not in ignored} | {"weights": sha256(WEIGHTS)}
    kept = Kept(arguments.what, settings, arguments.budget_seconds)
    result = (share if arguments.what == "share" else mismatch)(task, arguments, kept)
    result |= {
        "command": " ".join(["python", "benchmarks/tokens_cifar10.py", *sys.argv[1:]]), "env": environment(),
        "task": task.describe(), "weights_sha256": sha256(WEIGHTS),
    }  # fmt: skip
    atomic_write(RESULTS / f"tokens_cifar10_{arguments.what}.json", dump_json(result))


if __name__ == "__main__":
    main()
