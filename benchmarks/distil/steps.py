"""What a teacher costs in a training step: against teacher forward plus student step measured alone, and from a cache.

    python -m benchmarks.distil.steps              # writes benchmarks/results/distil_steps.json

One thread, its processor time. The three (step with the teacher, student's own step, teacher's forward) take turns on
the same batches; a ratio is the median over turns, with the 95 % interval of the median by order statistics.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.distil.networks import Grey, SmallCnn
from benchmarks.distil.results import write
from lessen.method import Context
from lessen.methods.distil._shared.distilled import Distilled, Scene
from lessen.methods.distil.gkd import GKD
from lessen.methods.distil.kd import KD
from lessen.methods.distil.random_sampling_kd import RandomSamplingKD
from lessen.task import Task
from lessen.tasks.ctr.models import MODELS
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.tasks.language.manual import ManualTask
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.train.parallel import ALONE
from lessen.train.run import Run
from lessen.train.stream import Piece, Stream
from lessen.train.teachers import evaluating

TURNS = 24
BATCHES = 4


def pictures() -> tuple[Task, nn.Module, nn.Module]:
    """Return shapes, a ViT and a small convolutional network."""
    return ShapesTask(ShapesOptions(examples=640)), Grey(width=64, depth=6), SmallCnn(32)


def clicks() -> tuple[Task, nn.Module, nn.Module]:
    """Return clicks, a DCNv2 and a perceptron over narrower vectors."""
    task = SyntheticClicks(SyntheticOptions(rows=12_000, fields=20, model="dcnv2", dim=16))
    task.batch_size = 1024
    return task, MODELS["dcnv2"](task.layout, dim=32, hidden=(400, 400)), MODELS["dnn"](
        task.layout, dim=16, hidden=(128, 64)
    )  # fmt: skip


def words() -> tuple[Task, nn.Module, nn.Module]:
    """Return rows of words over a vocabulary of 16,000, whose logits are most of the work of a small model."""
    import transformers

    def made(width: int, layers: int) -> nn.Module:
        model: nn.Module = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=16_000,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
        return model

    def batches(split: str, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield (ids := torch.randint(16_000, (2, 128), generator=generator)), ids.roll(-1, 1)

    return ManualTask().view(batches=batches), made(256, 6), made(256, 3)


CASES: dict[str, tuple[Callable[[], tuple[Task, nn.Module, nn.Module]], dict[str, Distilled]]] = {
    "pictures, ViT to CNN": (pictures, {"kd": KD()}),
    "clicks, DCNv2 to MLP": (clicks, {"kd": KD()}),
    "words of 16,000": (
        words,
        {
            "gkd forward": GKD(on_policy=0.0, kind="forward"),
            "gkd jsd": GKD(on_policy=0.0),
        },
    ),
}


def cached(method: Distilled) -> Distilled:
    """Return the form whose teacher's outputs come from disk."""
    return RandomSamplingKD() if isinstance(method, GKD) else method


def stepper(task: Task, student: nn.Module, hooks: tuple[Any, ...], batches: list[Any]) -> Callable[[int], None]:
    """Return what takes a whole training step on the batch of a turn."""
    settings = replace(task.settings, schedule="constant", warmup_steps=0, steps=None, steps_per_epoch=None)
    model = copy.deepcopy(student).train()
    for hook in hooks:
        hook.start(model)
    stream = Stream(lambda epoch: iter(batches), ALONE, 1)
    run = Run(model, settings, hooks, stream, torch.device("cpu"), seed=0, groups=None, total=None)
    return lambda turn: run._step([Piece(batches[turn % BATCHES], 1.0)], task.loss) and None


def timed(call: Callable[[int], None], turn: int) -> float:
    """Return the processor's seconds of a call: what others do on the machine is left out."""
    begun = time.process_time()
    call(turn)
    return time.process_time() - begun


def median(values: list[float]) -> dict[str, float]:
    """Return the median with its 95 % interval by order statistics."""
    ordered, count = sorted(values), len(values)
    reach = math.ceil(0.98 * math.sqrt(count))
    middle = count // 2
    return {"median": ordered[middle], "low": ordered[middle - reach], "high": ordered[middle + reach]}


def measured(task: Task, master: nn.Module, student: nn.Module, method: Distilled) -> dict[str, Any]:
    """Return both ratios of a method."""
    source = iter(task.batches("train", seed=0))
    batches = [next(source) for _ in range(BATCHES)]
    context = Context()
    master = master.eval()
    with tempfile.TemporaryDirectory() as folder:
        ways = {}
        for name, one in (("asked", method), ("cached", cached(method).model_copy(update={"cache": folder}))):
            teacher = one._asked(master, task, batches[0], context)
            hook = one.hook(Scene(teacher, (), task, batches[0], student, context))
            ways[name] = stepper(task, student, (hook,), batches)
            for turn in range(BATCHES):  # fills the cache
                ways[name](turn)
            teacher.close()
        alone = stepper(task, student, (), batches)

        def forward(turn: int) -> None:
            with torch.no_grad(), evaluating(master):
                task.forward(master, batches[turn % BATCHES])

        rows = []
        for turn in range(TURNS):
            row = {"alone": timed(alone, turn), "teacher": timed(forward, turn)}
            rows.append({**row, **{name: timed(way, turn) for name, way in ways.items()}})
    return {
        "with teacher / (teacher + student)": median([r["asked"] / (r["teacher"] + r["alone"]) for r in rows]),
        "from cache / student": median([r["cached"] / r["alone"] for r in rows]),
        "milliseconds": {name: 1000 * median([r[name] for r in rows])["median"] for name in rows[0]},
    }


def main() -> None:
    """Measure all cases and print them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for case, (make, methods) in CASES.items():
        task, master, student = make()
        for name, method in methods.items():
            found[f"{case}: {name}"] = one = measured(task, master, student, method)
            ratios = {k: {n: round(x, 3) for n, x in v.items()} for k, v in one.items()}
            print(case, name, ratios, flush=True)
    if "--dry" not in sys.argv:
        write(Path("benchmarks/results/distil_steps.json"), found, "python -m benchmarks.distil.steps")


if __name__ == "__main__":
    main()
