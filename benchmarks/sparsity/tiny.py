"""The tiny time-series Transformer: 13,262 weights clustered, pruned and written as one file, every byte told.

    python -m benchmarks.sparsity.tiny          # writes benchmarks/results/sparsity_tiny.json

The network of "The Tiny Time-series Transformer" (arXiv 2303.08951): 100 steps of two channels, one block of 32 wide
attention with 16 heads, 14 classes. Its data are not public in a form that fits here: light curves are drawn, a class
is a length of the outburst and a colour, so that quality is what clustering costs on them and no figure of the paper.
Three seeds; each stage is judged on the same 1400 curves, by accuracy and log loss. `file` is `lessen.artifact.flat`:
weights + graph + metadata add up to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distil.results import write
from lessen.artifact import folder as artifact
from lessen.artifact.flat import write_flat
from lessen.method import Method
from lessen.methods.sites import state_bytes
from lessen.methods.weights.half import HalfLinears
from lessen.methods.weights.weight_clustering import WeightClustering
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/sparsity_tiny.json")
PUBLISHED = {"raw fp32 weights": 53_048, "smallest file, quantised FlatBuffer": 60_320, "SavedModel": 1_086_952}
SEEDS = range(3)
SETTINGS = FitSettings(epochs=10, learning_rate=4e-3, schedule="cosine", patience=None, keep="last", clip_norm=1.0)
STAGES: dict[str, list[Method]] = {
    "as trained": [],
    "16 values": [WeightClustering()],
    "16 values trained": [WeightClustering(fine_tune_epochs=3)],
    "half removed, 15 values trained": [WeightClustering(density=0.5, fine_tune_epochs=3)],
    "8 values trained": [WeightClustering(clusters=8, fine_tune_epochs=3)],
    "bf16": [HalfLinears()],
}


class TinyTransformer(nn.Module):
    """[B, 2, 100] to logits [B, 14]: a point convolution, positions, a post-norm block, the mean over time, a head."""

    def __init__(self, width: int = 32, heads: int = 16, classes: int = 14) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv1d(2, width, 1)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, series: Tensor) -> Tensor:
        """Return the logits."""
        tokens = torch.relu(self.stem(series)).transpose(1, 2)
        tokens = tokens + positions(tokens.shape[1], tokens.shape[2])
        q, k, v = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = self.first(tokens + self.out(mixed))
        tokens = self.second(tokens + self.narrow(torch.relu(self.wide(tokens))))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def positions(length: int, width: int) -> Tensor:
    """Return sinusoids float32 [length, width]."""
    rates = torch.exp(torch.arange(0, width, 2) * (-9.21034 / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class Curves(Task):
    """Outbursts of seven lengths and two colours, noisy and at any time."""

    name = "light-curves"
    metrics = {"accuracy": ACCURACY}
    settings = SETTINGS

    def build(self) -> nn.Module:
        """Return the untrained network."""
        return TinyTransformer()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of 64."""
        curves, classes = drawn(1400, ("train", "validation", "test").index(split))
        order = torch.arange(len(classes))
        if split == "train":
            order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, 64):
            yield curves[rows], classes[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(self.forward(model, batch), batch[1])


@cache
def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return curves float32 [count, 2, 100] and classes int64 [count]."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randint(14, (count,), generator=draw)
    start = 10 + 40 * torch.rand(count, 1, generator=draw)
    since = torch.arange(100) - start
    length = (3.0 * 1.6 ** (classes % 7)).unsqueeze(1)
    flux = torch.where(since > 0, torch.exp(-since / length), torch.exp(since / 2.0))
    flux = flux * (0.8 + 0.4 * torch.rand(count, 1, generator=draw))
    colour = torch.where(classes < 7, 0.6, 1.1).unsqueeze(1)
    curves = torch.stack([flux, colour * flux], dim=1)
    return curves + 0.1 * torch.randn(curves.shape, generator=draw), classes


def judged(model: nn.Module, task: Task) -> dict[str, float]:
    """Return accuracy and log loss on the test split."""
    with torch.no_grad():
        pairs = [(task.forward(model.eval(), batch), task.target(batch)) for batch in task.batches("test")]
    logits, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    return {
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
        "log loss": float(F.cross_entropy(logits, labels.long())),
    }


def sized(model: nn.Module) -> dict[str, int]:
    """Return bytes of the state, of the artifact's folder, and of the file by what they are for."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(Path(folder) / "made", model, TinyTransformer())
        found = write_flat(Path(folder) / "made", Path(folder) / "one.flat")
        files = sum(file.stat().st_size for file in (Path(folder) / "made").iterdir())
    return {"state": state_bytes(model), "folder": files, "file": found.total, **asdict(found)}


def run_of(seed: int) -> dict[str, Any]:
    """Train, make every stage and judge it."""
    task = Curves()
    torch.manual_seed(seed)
    model = TinyTransformer()
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_262
    with torch.random.fork_rng():
        task.train(model, seed=seed)
    tuned = task.view(settings=replace(SETTINGS, learning_rate=1e-3))
    run = {}
    for name, steps in STAGES.items():
        made = Recipe(steps).apply(model, tuned, seed=seed)[0] if steps else model
        run[name] = {**judged(made, task), "bytes": sized(made)}
        print(seed, name, run[name], flush=True)
    return run


def main() -> None:
    """Make the seeds that the result file lacks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="none: bytes of drawn weights only")
    torch.set_num_threads(1)
    made = {str(seed): run_of(seed) for seed in parser.parse_args().seeds}
    runs = (json.loads(RESULT.read_text())["results"]["runs"] if RESULT.exists() else {}) | made
    means = {
        name: {key: statistics.mean(run[name][key] for run in runs.values()) for key in ("accuracy", "log loss")}
        | {"largest file": max(run[name]["bytes"]["file"] for run in runs.values())}
        for name in STAGES if runs
    }  # fmt: skip
    settings = {"curves of a split": 1400, "epochs": SETTINGS.epochs, "published bytes": PUBLISHED}
    results = {"settings": settings, "means": means, "runs": runs, "bytes of drawn weights": drawn_bytes()}
    write(RESULT, results, "python -m benchmarks.sparsity.tiny")


def drawn_bytes() -> dict[str, dict[str, int]]:
    """Return the bytes of each stage for weights as they are drawn, which nothing trained."""
    torch.manual_seed(0)
    model, found = TinyTransformer(), {}
    for name, steps in STAGES.items():
        if any(getattr(step, "fine_tune_epochs", 0) for step in steps):
            steps = [step.model_copy(update={"fine_tune_epochs": 0}) for step in steps]
        found[name.replace("values trained", "values").replace("as trained", "as drawn")] = sized(
            Recipe(steps).apply(model, Curves(), seed=0)[0] if steps else model
        )
    return found


if __name__ == "__main__":
    main()
