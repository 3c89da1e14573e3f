"""Small tasks and models with a known truth inside, and what is done to them: a planted fault, or nothing much."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.data.clips import PACE
from lessen.metrics import ACCURACY
from lessen.task import Split, Task
from lessen.tasks.probes.cues import CuesOptions, CuesTask
from lessen.train.settings import FitSettings


class Arrays(Task):
    """A classification task over arrays that are given: inputs and classes by split, features by name."""

    name = "arrays"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=3, learning_rate=1e-2, patience=3)

    def __init__(
        self, splits: dict[str, tuple[Tensor, Tensor]], model: Any, labels: dict[str, Any] | None = None
    ) -> None:
        self.splits, self.make, self.labels = splits, model, labels or {}

    def build(self) -> nn.Module:
        return self.make()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, target = self.splits[split]
        order = torch.arange(len(target))
        if split == "train":
            order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, 128):
            yield inputs[rows], target[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])

    def slices(self, split: Split) -> Any:
        return self.labels.get(split, {})


def disturbed(model: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """Return a copy whose weights moved by `size` of their spread: harmless where it is small."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight += size * torch.randn(weight.shape, generator=generator) * float(weight.std(correction=0))
    return other


def blobs(seed: int) -> Arrays:
    """Three classes in eight dimensions, told apart by a perceptron."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.one_hot(torch.arange(3), 8).float() * 5
    splits = {}
    for split, count in (("train", 1500), ("validation", 600), ("test", 600)):
        target = torch.randint(3, (count,), generator=g)
        splits[split] = centres[target] + torch.randn(count, 8, generator=g), target
    return Arrays(splits, lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)))


def known_cues(seed: int, ratio: float = 4.0) -> tuple[CuesTask, nn.Module, nn.Module]:
    """The cues and two linear models: the best one, and one that reads the shortcut alone."""
    task = CuesTask(CuesOptions(seed=seed, ratio=ratio, inputs=20, hidden=0, examples=1000))
    ways = np.linalg.pinv(task.embed(np.eye(2)).double().numpy())
    found = []
    for direction in (np.linalg.solve(task.covariance, task.means), np.array([1.0, 0.0])):
        model = task.build()
        with torch.no_grad():
            weight = torch.from_numpy(ways @ direction).float()
            model[0].weight.copy_(torch.stack([-weight, weight]))
            model[0].bias.zero_()
        found.append(model.eval())
    return task, found[0], found[1]


class Blocks(nn.Module):
    """Residual blocks of a random network, [n, 8] to scores [n, 4]: early layers hold what is simple."""

    def __init__(self, width: int = 48, depth: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        held = torch.relu(self.first(inputs))
        for block in self.blocks:
            held = block(held)
        return self.head(held)


def deep(seed: int) -> tuple[Arrays, Blocks]:
    """Normal inputs and a random network of four blocks."""
    torch.manual_seed(seed)
    model = Blocks().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 2.5  # far from linear
    inputs = torch.randn(1600, 8)
    target = model(inputs).argmax(dim=1).detach()
    return Arrays({"test": (inputs, target), "train": (inputs, target), "validation": (inputs, target)}, Blocks), model


def evened(seed: int) -> tuple[Arrays, Blocks]:
    """As `deep`, with four classes that are about as frequent: a network with one class has nothing to lose."""
    task, model = deep(seed)
    inputs = torch.cat([task.splits["test"][0], torch.randn(2400, 8)])
    with torch.no_grad():
        logits = model(inputs)
        model.head.bias -= logits.mean(0)
        model.head.bias /= logits.std(0)
        model.head.weight /= logits.std(0)[:, None]
        target = model(inputs).argmax(dim=1)
    return Arrays({"test": (inputs, target), "train": (inputs, target), "validation": (inputs, target)}, Blocks), model


def without_blocks(model: Blocks) -> nn.Module:
    """Return a copy whose blocks pass their input on: what only they computed is gone."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for block in other.blocks:
            block[0].weight.copy_(torch.eye(len(block[0].weight)))
            block[0].bias.zero_()
    return other


def two_features(seed: int, easy: float = 3.0, hard: float = 0.3) -> tuple[Arrays, nn.Module]:
    """A model whose last layer holds an easy bit with much variance and a hard one (parity) with a hundredth of it."""
    g = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (3000, 4), generator=g).float() * 2 - 1
    parity = bits[:, 1] * bits[:, 2]
    ways = torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    signal = torch.stack([easy * bits[:, 0], hard * parity], dim=1) @ ways[:2]
    inputs = signal + 0.02 * torch.randn(3000, 16, generator=g)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(16))
        model[1].weight.copy_(
            torch.stack([ways[0] + ways[1], ways[0] - ways[1], ways[1] - ways[0], -ways[0] - ways[1]])
        )
    labels = {"easy": (bits[:, 0] > 0).numpy(), "hard": (parity > 0).numpy()}
    target = (2 * (bits[:, 0] < 0) + ((bits[:, 0] > 0) != (parity > 0)).int()).long()
    splits = dict.fromkeys(("train", "validation", "test"), (inputs, target))
    return Arrays(splits, lambda: copy.deepcopy(model), {"test": labels}), model


def rank_cut(model: nn.Module, inputs: Tensor, rank: int) -> nn.Module:
    """Return a copy whose first layer keeps the directions of most variance of its outputs only."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        outputs = other[0](inputs)
        ways = torch.linalg.svd(outputs - outputs.mean(dim=0), full_matrices=False)[2][:rank]
        other[0].weight.copy_(ways.t() @ ways @ other[0].weight)
    return other


def rank_of(model: nn.Module, rank: int) -> nn.Module:
    """Return a copy whose first layer's weight has this rank."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        left, scale, right = torch.linalg.svd(other[0].weight, full_matrices=False)
        other[0].weight.copy_(left[:, :rank] * scale[:rank] @ right[:rank])
    return other


def two_patches(seed: int) -> tuple[Arrays, nn.Module, nn.Module]:
    """Pictures whose class is written into two corners, a model that reads the one and a model that reads the other."""
    g = torch.Generator().manual_seed(seed)
    splits = {}
    for split, count in (("train", 200), ("validation", 200), ("test", 200)):
        target = torch.randint(2, (count,), generator=g)
        pictures = 0.3 * torch.randn(count, 1, 16, 16, generator=g)
        for rows, columns in ((slice(0, 5), slice(0, 5)), (slice(11, 16), slice(11, 16))):
            pictures[:, 0, rows, columns] += (2 * target - 1).float()[:, None, None]
        splits[split] = pictures, target
    models = []
    for rows, columns in ((slice(0, 5), slice(0, 5)), (slice(11, 16), slice(11, 16))):
        weight = torch.zeros(16, 16)
        weight[rows, columns] = 0.3
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
        with torch.no_grad():
            model[1].weight.copy_(torch.stack([-weight.flatten(), weight.flatten()]))
            model[1].bias.zero_()
        models.append(model.eval())
    return Arrays(splits, lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 2))), models[0], models[1]


class Watcher(nn.Module):
    """Sees the shape, the way and the speed of what moves, of the frames that it keeps; the rest it guesses."""

    def __init__(self, keeps: int) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(1))
        self.keeps = keeps


class Watching(Arrays):
    """A task that answers questions about clips by looking at the pixels."""

    name = "watching"

    def __init__(self) -> None:
        super().__init__({}, lambda: Watcher(8))

    def fingerprint(self) -> str:
        return "clips"

    def answer_video(self, model: Any, clip: Any, prompt: str) -> str:
        kept = clip[:: max(1, len(clip) // model.keeps)][: model.keeps]
        lit = kept[:, 0] > 0.5
        places = [float(frame.any(dim=0).nonzero().float().mean()) if frame.any() else -1.0 for frame in lit]
        high, wide = (int(lit[0].any(dim=axis).sum()) for axis in (1, 0))
        moved = places[-1] - places[0]
        pace = abs(moved) / max(1, len(places) - 1) / max(1, len(clip) // model.keeps)
        seen = {"shape": "bar" if high > wide + 2 else "square", "go": "right" if moved >= 0 else "left",
                "move?": "fast" if pace > 0.75 * PACE else "slow"}  # fmt: skip
        word = next(value for key, value in seen.items() if key in prompt.splitlines()[0])
        if "Is it" in prompt:
            return "yes" if f"Is it {word}?" in prompt else "no"
        return next(line[0] for line in prompt.splitlines() if line.endswith(f". {word}"))
