"""SmolLM2 cut to ten of its thirty layers, then trained for a while with and without its teacher.

    python -m benchmarks.distil.smollm2 --seconds 3600     # of training, each way; one thread

Perplexity on news documents before, after the cut, and after training; gap closed = (cut - trained) / (cut - whole) of
the logarithms. Writes benchmarks/results/distil_smollm2.json.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.distil.results import write
from lessen.method import Context
from lessen.methods.distil.gkd import GKD
from lessen.methods.distil.layer_cut import LayerCut
from lessen.task import Task
from lessen.tasks.language.perplexity import LanguageOptions
from lessen.tasks.language.smollm2 import SmolLM2Task

LAYERS = 10


def perplexity(task: Task, model: nn.Module) -> float:
    """Return the perplexity of the test documents."""
    return float(task.metrics["perplexity"](task.outcomes(model, "test")))


def main() -> None:
    """Cut, train and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    options = LanguageOptions(
        documents=given.documents,
        validation_documents=2,
        train_documents=180,
        window=given.window,
        stride=given.window // 2,
        batch=given.batch,
    )
    base = SmolLM2Task(options)
    settings = replace(
        base.settings,
        learning_rate=3e-4,
        schedule="constant",
        warmup_steps=5,
        epochs=10_000,
        steps_per_epoch=10**9,
        max_seconds=given.seconds,
        patience=None,
        keep="last",
        plateau_factor=1.0,
    )
    whole = base.reference()
    task = base.view(settings=settings, score=lambda *_: 0.0)
    student = LayerCut(layers=LAYERS).apply(copy.deepcopy(whole), task, Context())
    found: dict[str, Any] = {"whole": perplexity(task, whole), "cut": perplexity(task, student)}
    print(found, flush=True)
    gap = math.log(found["cut"]) - math.log(found["whole"])
    for name in ("labels alone", "forward kl"):
        model = copy.deepcopy(student)
        if name == "forward kl":
            context = Context(original=whole)
            model = GKD(on_policy=0.0, kind="forward").apply(model, task, context)
        else:
            task.train(model)
        after = perplexity(task, model)
        found[name] = {"perplexity": after, "gap closed": (math.log(found["cut"]) - math.log(after)) / gap}
        print(name, found[name], flush=True)
    settings_said = {**vars(given), "layers": LAYERS, "of": 30}
    write(
        Path("benchmarks/results/distil_smollm2.json"),
        {"settings": settings_said, **found},
        f"python -m benchmarks.distil.smollm2 --seconds {given.seconds:g} --documents {given.documents} "
        f"--window {given.window} --batch {given.batch}",
    )


if __name__ == "__main__":
    main()
