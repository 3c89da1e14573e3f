"""Three restorations by one small Transformer: models apart, one shared model, and one with a difference for each task.

    python -m benchmarks.adapt.joint [--seconds 170]     # writes benchmarks/results/adapt_joint.json

Grey CIFAR-10 pictures, 16 x 16: noise taken off, blur taken back, a missing square filled in. `apart` are three
models, one for each task; `shared` is one model for all three; `joint` is Instruct-IPT with rank 4, trained in one run;
`frozen` trains rank-4 corrections (LoRA) on the shared model, which stays. Equal epochs over the same pictures, three
seeds; PSNR in dB on 500 test pictures; weights that each further task adds. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.distil.results import paired, write
from lessen.data.catalogue import get
from lessen.data.cifar10 import load_cifar10
from lessen.method import Context
from lessen.methods.adapt._shared.joint import mixed, train_jointly
from lessen.methods.adapt.lora import LoRA
from lessen.methods.sites import Site
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/adapt_joint.json")
SEEDS, EPOCHS, RANK, WIDTH = range(3), 4, 4, 48
SIZES = {"train": 600, "validation": 200, "test": 500}
KINDS = ("noise", "blur", "square")
SETTINGS = FitSettings(
    epochs=EPOCHS, learning_rate=2e-3, optimizer="adamw", schedule="cosine", patience=None, keep="last"
)


class Block(nn.Module):
    """Attention of four heads, then two linear layers, each behind a norm and around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, WIDTH] to the same."""
        query, key, value = self.qkv(self.norms[0](tokens)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.mixed(seen)
        found: Tensor = tokens + self.down(functional.gelu(self.up(self.norms[1](tokens))))
        return found


class Restorer(nn.Module):
    """Patches of 2 x 2 through three Transformer blocks, added to the picture: [B, 1, 16, 16] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.places = nn.Linear(4, WIDTH), nn.Parameter(0.02 * torch.randn(64, WIDTH))
        self.body = nn.Sequential(Block(), Block(), Block())
        self.out = nn.Linear(WIDTH, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return restored pictures."""
        patches = functional.pixel_unshuffle(pictures, 2).flatten(2).transpose(1, 2)
        found = self.out(self.body(self.into(patches) + self.places))
        return pictures + functional.pixel_shuffle(found.transpose(1, 2).unflatten(2, (8, 8)), 2)


class Restoration(Task):
    """Restore pictures that one kind of damage was done to; batches are (damaged, clean)."""

    metrics = {}
    settings = SETTINGS

    def __init__(self, kind: str, held: dict[str, Tensor]) -> None:
        self.name, self.kind, self.held = f"restore-{kind}", kind, held

    def build(self) -> nn.Module:
        """Return an untrained network."""
        return Restorer()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of 64; damage of the train split is drawn anew by `seed`."""
        clean = self.held[split]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(clean), generator=generator) if split == "train" else torch.arange(len(clean))
        for rows in torch.split(order, 64):
            yield damaged(clean[rows], self.kind, generator), clean[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(model(batch[0]), batch[1])

    @torch.no_grad()
    def score(self, model: nn.Module, split: Split) -> float:
        """Return the mean PSNR in dB."""
        errors = [(model(given).clamp(0, 1) - clean).square().mean((1, 2, 3)) for given, clean in self.batches(split)]
        return float((-10 * torch.cat(errors).log10()).mean())


def damaged(clean: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return pictures with noise of 0.1, blurred by 3 x 3, or without a square of 6 x 6."""
    if kind == "noise":
        return clean + 0.1 * torch.randn(clean.shape, generator=generator)
    if kind == "blur":
        return functional.avg_pool2d(functional.pad(clean, (1, 1, 1, 1), mode="reflect"), 3, 1)
    made = clean.clone()
    for picture, (row, column) in zip(made, torch.randint(11, (len(clean), 2), generator=generator), strict=True):
        picture[:, row : row + 6, column : column + 6] = 0.5
    return made


def grey() -> dict[str, Tensor]:
    """Return pictures by split, float32 [n, 1, 16, 16] within 0 and 1."""
    images, found = load_cifar10(get("cifar10")), {}
    for split, count in SIZES.items():
        pixels = getattr(images, split).pixels[:count].float() / 255.0
        pixels = pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2)
        found[split] = functional.avg_pool2d(pixels.mean(1, keepdim=True), 2)
    return found


def sites_of(model: nn.Module) -> list[Site]:
    """Return all linear layers."""
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    return [Site((name,), model.get_submodule(name)) for name in names]


def part(name: str, tasks: list[Restoration], seed: int) -> dict[str, float]:
    """Return PSNR of one way, or of two that need each other, by setting and task."""
    torch.manual_seed(seed)
    start = Restorer()
    if name == "apart":
        made = [copy.deepcopy(start) for _ in tasks]
        for task, model in zip(tasks, made, strict=True):
            task.train(model, seed=seed)
        return judged(name, tasks, made)
    if name == "joint":
        joint = train_jointly(start, sites_of(start), tasks, RANK, Context(seed=seed), None)
        whole = sum(p.numel() for p in joint.backbone().parameters())
        added = sum(RANK * sum(site.module.layer.weight.shape) for site in joint.sites) / whole
        return judged(name, tasks, [joint.model(number) for number in range(len(tasks))]) | {"added": added}
    mixed(tasks, []).train(start, seed=seed)
    frozen = []
    for task in tasks:
        one, settle = LoRA(rank=RANK, alpha=RANK).wrapped(copy.deepcopy(start), Context(seed=seed))
        task.train(one, seed=seed)
        settle()
        frozen.append(one)
    return judged("shared", tasks, [start] * len(tasks)) | judged("frozen", tasks, frozen)


def judged(name: str, tasks: list[Restoration], models: list[nn.Module]) -> dict[str, float]:
    """Return the PSNR of each task, and their mean."""
    each = {f"{name} {task.kind}": task.score(one.eval(), "test") for task, one in zip(tasks, models, strict=True)}
    return each | {name: statistics.mean(each.values())}


def summary(record: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return means, and differences to the shared model, paired over seeds, once all are there."""
    whole = [one for one in record.values() if {"apart", "joint", "frozen"} <= one.keys()]
    if len(whole) < len(SEEDS):
        return {}
    found: dict[str, Any] = {name: statistics.mean(one[name] for one in whole) for name in whole[0]}
    shared = [one["shared"] for one in whole]
    return found | {
        f"{name} against shared": paired([one[name] for one in whole], shared) for name in ("apart", "joint", "frozen")
    }


def main() -> None:
    """Make what is missing, within the seconds of the processor given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1e9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(RESULT.read_text())["results"]["runs"] if RESULT.exists() else {}
    tasks = [Restoration(kind, held) for held in [grey()] for kind in KINDS]
    for seed in SEEDS:
        done = record.setdefault(str(seed), {})
        for name in ("joint", "frozen", "apart"):
            if name in done or time.process_time() > asked.seconds:
                continue
            done |= part(name, tasks, seed)
            settings = {"epochs": EPOCHS, "rank": RANK, "width": WIDTH, **SIZES}
            results = {"settings": settings, "runs": record, "summary": summary(record)}
            write(RESULT, results, "python -m benchmarks.adapt.joint")
            print(seed, json.dumps({kind: round(value, 3) for kind, value in done.items()}), flush=True)


if __name__ == "__main__":
    main()
