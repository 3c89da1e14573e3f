"""SmolLM2 cut to ten of its thirty layers, then trained with its teacher, and for as many steps without it.

    python -m benchmarks.distil.smollm2 --seconds 3300     # at most, each way; one thread

Perplexity on news documents before, after the cut, after training and at 4 bits; gap closed = (cut - trained) /
(cut - whole) of the logarithms. Both ways see the same tokens. Writes benchmarks/results/distil_smollm2.json after
every line that is printed, and leaves the student as a Hugging Face folder.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.distil.results import write
from lessen.method import Context
from lessen.methods.distil.gkd import GKD
from lessen.methods.distil.layer_cut import LayerCut
from lessen.methods.sites import state_bytes
from lessen.methods.weights.rtn import RTN
from lessen.task import Task
from lessen.tasks.language.perplexity import LanguageOptions
from lessen.tasks.language.smollm2 import SmolLM2Task

LAYERS = 10
RESULT = Path("benchmarks/results/distil_smollm2.json")


def asked() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600.0, help="cap on each training")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/smollm2-ten-layers"))
    return parser.parse_args()


def task_of(given: argparse.Namespace) -> Task:
    """Return the task with the settings of training."""
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
        learning_rate=given.rate,
        minimum_learning_rate=given.rate / 20,
        schedule="cosine",
        warmup_steps=5,
        steps=given.steps,
        max_seconds=given.seconds,
        patience=None,
        keep="last",
    )
    return base.view(settings=settings, score=lambda *_: 0.0)


def judged(task: Task, model: nn.Module) -> dict[str, float]:
    """Return the perplexity of the test documents and the bytes of the weights."""
    found = float(task.metrics["perplexity"](task.outcomes(model, "test")))
    return {"perplexity": found, "bytes": float(state_bytes(model))}


def main() -> None:
    """Cut, train and judge."""
    given = asked()
    torch.set_num_threads(1)
    task = task_of(given)
    whole = task.reference()
    student = LayerCut(layers=LAYERS, rule="early").apply(copy.deepcopy(whole), task, Context())
    command = " ".join(["python -m benchmarks.distil.smollm2", *(f"--{k} {v}" for k, v in vars(given).items())])
    said = {**{k: str(v) if k == "out" else v for k, v in vars(given).items()}, "layers": LAYERS, "of": 30}
    found: dict[str, Any] = {"settings": said}

    def note(name: str, line: dict[str, float]) -> None:
        if {"whole", "cut"} <= found.keys():
            above, top, bottom = (math.log(each["perplexity"]) for each in (line, found["cut"], found["whole"]))
            line["gap closed"] = (top - above) / (top - bottom)
        found[name] = line
        print(name, line, flush=True)
        write(RESULT, found, command)

    note("whole", judged(task, whole))
    note("cut", judged(task, student))
    for name in ("forward kl", "labels alone"):
        model = copy.deepcopy(student)
        began, spent = time.perf_counter(), time.process_time()
        if name == "forward kl":
            context = Context(original=whole)
            model = GKD(on_policy=0.0, kind="forward").apply(model, task, context)
            model.save_pretrained(given.out)
        else:
            task.train(model)
        took = {"seconds": time.perf_counter() - began, "processor seconds": time.process_time() - spent}
        note(name, {**judged(task, model), **took})
        if name == "forward kl":
            note(f"{name}, 4 bits", judged(task, RTN(bits=4, group=128).apply(model, task, Context())))
            note("whole, 4 bits", judged(task, RTN(bits=4, group=128).apply(copy.deepcopy(whole), task, Context())))


if __name__ == "__main__":
    main()
