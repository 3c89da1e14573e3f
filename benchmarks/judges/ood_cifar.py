"""AbeT beside MSP, energy and ODIN on CIFAR-10: the shipped ViT, as it is and compressed.

    python -m benchmarks.judges.ood_cifar [--examples 500] [--out benchmarks/results]

Outside inputs are noise and pictures with their values dealt anew (as the suite does), and drawn
pictures (`lessen.data.textures`). AUROC of each score; the share of inputs from inside that pass the threshold
which passed 95 % of validation pictures of the uncompressed model, and of those from outside. About 4 minutes of CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen import files
from lessen.data.cifar10 import normalise
from lessen.data.textures import textures
from lessen.environment import environment
from lessen.judges import get_judge
from lessen.judges.ood import DETECTORS
from lessen.recipe import Recipe
from lessen.task import Split
from lessen.tasks import get_task
from lessen.tasks.vision.cifar10 import Cifar10Task

RESULTS = Path(__file__).parents[1] / "results"
RECIPES: dict[str, list[dict[str, Any]]] = {
    "as it is": [],
    "int8": [{"linear-int8": {}}],
    "3 bits": [{"rtn": {"bits": 3}}],
    "tome, 8 a block": [{"tome": {"r": 8}}],
}


class Drawn(Cifar10Task):
    """Drawn pictures of CIFAR's size, normalised as its pictures are."""

    name = "drawn"

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of 250 pictures, float32 [B, 3, 32, 32]; the class is of no account."""
        for part in normalise(textures(1000, 32, seed=5)).split(250):
            yield part, torch.zeros(len(part), dtype=torch.int64)


def main() -> None:
    """Parse the command line, judge, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = {
        "train_examples": 4 * asked.examples,
        "validation_examples": asked.examples,
        "test_examples": asked.examples,
    }
    task = get_task({"name": "image-cifar10", **size})
    model = task.reference()
    found: dict[str, Any] = {}
    for outside in (None, f"{Path(__file__)}:Drawn"):
        judge = get_judge({"name": "ood", "examples": asked.examples, "outside": outside}, task=task)
        before = judge.outcomes(model)
        for name, steps in RECIPES.items():
            compact, _ = Recipe.parse({"steps": steps}).apply(model, task)
            section = judge.compare(before, before if not steps else judge.outcomes(compact))
            figures = {
                one: {k: v if v is None else round(v, 4) for k, v in section.figures[one].items()} for one in DETECTORS
            }
            found.setdefault("made" if outside is None else "drawn", {})[name] = figures
            print(
                outside,
                name,
                {one: (f["after"], f["carried inside"], f["carried outside"]) for one, f in figures.items()},
                flush=True,
            )
    told = {"examples": asked.examples, "outside": found, "env": environment(1)}
    files.atomic_write(asked.out / "judges_ood_cifar.json", json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
