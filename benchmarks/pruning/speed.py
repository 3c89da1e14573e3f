"""Whether pruned models are faster by what they save: paired calls of the whole and the pruned model, one thread.

    python -m benchmarks.pruning.speed [--rounds 12] [--hosts minilm]     (rows of other hosts are kept)

Calls take turns; a row is the median, over rounds, of whole / pruned in processor time, with its 95 % bootstrap
interval, beside the ratio of multiply-adds. Widths are multiples of 16, of which heads (64 and 32 wide) are some.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

import lessen
from benchmarks.pruning.frontier import RESULTS
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.measure.record import count_macs
from lessen.recipe import Recipe

SHARES = (0.75, 0.5, 0.25)


def batch_of(name: str, task: Any) -> Any:
    """Return what is timed: 8 texts of 64 tokens, 8 pictures, or a prompt of 64 tokens."""
    batch = task.example_batch()
    if name == "minilm":
        return {key: value[:, :64].repeat(1, 64 // value[:, :64].shape[1] + 1)[:, :64] for key, value in batch.items()}
    return batch


def timed(task: Any, batch: Any, models: list[Any], rounds: int) -> dict[str, Any]:
    """Return the ratio of processor times, whole / pruned."""
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(rounds + 2):
            for place, model in enumerate(models):
                start = time.process_time()
                task.forward(model, batch)
                if number > 1:
                    seconds[place].append(time.process_time() - start)
    ratios = np.asarray(seconds[0]) / np.asarray(seconds[1])
    draws = np.random.default_rng(0).integers(0, rounds, (2000, rounds))
    ends = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return {"faster": round(float(np.median(ratios)), 3), "ci": [round(float(end), 3) for end in ends],
            "seconds": [[round(value, 4) for value in each] for each in seconds]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--hosts", default="minilm,smollm2")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "pruning_speed.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name, task in (
        ("minilm", lessen.get_task({"name": "retrieval-minilm", "length": 64})),
        ("smollm2", lessen.get_task({"name": "language-smollm2", "documents": 2, "train_documents": 2})),
    ):
        if name not in asked.hosts.split(","):
            continue
        whole, batch = task.reference(), batch_of(name, task)
        for share in SHARES:
            of = "macs" if name == "minilm" else "parameters"
            steps = [{"magnitude-pruning": {"share": share if name == "minilm" else max(share, 0.4), "of": of}}]
            made, _ = Recipe.parse({"name": name, "steps": steps}).apply(whole, task)
            with_batch = task.view(example_batch=lambda given=batch: given)
            macs = [count_macs(with_batch, model) for model in (whole, made)]
            assert macs[0]
            assert macs[1]
            found = timed(task, batch, [whole, made], asked.rounds)
            expected = macs[0] / macs[1]
            rows[f"{name} {steps[0]['magnitude-pruning']['share']:.0%}"] = {
                "steps": steps, "fewer multiply-adds": round(expected, 3),
                "of it": round(found["faster"] / expected, 3), **found,
            }  # fmt: skip
            print(name, share, round(expected, 3), found["faster"], found["ci"], flush=True)
    atomic_write(path, dump_json({
        "benchmark": "pruning_speed", "command": "python -m benchmarks.pruning.speed",
        "environment": environment(1), "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
