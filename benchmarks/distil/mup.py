"""Does the best learning rate stay when a network grows wider? Digits, Adam, standard and muP; and the sharpness.

    python -m benchmarks.distil.mup                # writes benchmarks/results/distil_mup.json

A perceptron 64-n-n-10, three epochs over 1200 noisy digits; the loss on the others, mean of two seeds.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distil.results import write
from lessen.train.fit import fit
from lessen.train.mup import groups, rescale, sharpness
from lessen.train.settings import FitSettings

WIDTHS, BASE = (64, 256, 512), 64
RATES = [2.0**power for power in range(-11, -4)]
SEEDS = range(2)


def data() -> tuple[Tensor, Tensor]:
    """Return noisy digits [1797, 64] and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(1797, generator=generator)
    x = torch.tensor(found.data, dtype=torch.float32) / 8 - 1
    return (x + 0.8 * torch.randn(x.shape, generator=generator))[order], torch.tensor(found.target)[order]


def built(width: int, seed: int) -> nn.Module:
    """Return the untrained perceptron."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def trained(width: int, rate: float, seed: int, scaled: bool, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the loss on held-out digits and the sharpness on 256 training digits."""
    model, base = built(width, seed), built(BASE, 0)
    if scaled:
        rescale(model, base)

    def batches(epoch: int) -> list[Any]:
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(100 * seed + epoch))
        return [(x[rows], y[rows]) for rows in order.split(60)]

    settings = FitSettings(epochs=3, learning_rate=rate, schedule="constant", patience=None, keep="last")
    fit(
        model,
        batches=batches,
        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        validate=None,
        settings=settings,
        parameters=groups(model, base) if scaled else None,
        seed=seed,
    )
    with torch.no_grad():
        held = float(F.cross_entropy(model(x[1200:]), y[1200:]))
    largest = sharpness(
        lambda: F.cross_entropy(model(x[:256]), y[:256]), model.parameters(), torch.Generator().manual_seed(0), 15
    )
    return held, largest


def main() -> None:
    """Sweep the rates and print where the best one is."""
    torch.set_num_threads(1)
    x, y = data()
    found: dict[str, Any] = {}
    for name, scaled in (("standard", False), ("muP", True)):
        for width in WIDTHS:
            losses, sharp = [], []
            for rate in RATES:
                runs = [trained(width, rate, seed, scaled, x, y) for seed in SEEDS]
                losses.append(statistics.mean(run[0] for run in runs))
                sharp.append(statistics.mean(run[1] for run in runs))
            best = min(range(len(RATES)), key=lambda place: losses[place])
            found[f"{name} {width}"] = {
                "log2 of best rate": math.log2(RATES[best]),
                "losses": losses,
                "sharpness": sharp,
                "sharpness at 2^-8": sharp[RATES.index(2.0**-8)],
            }
            print(name, width, math.log2(RATES[best]), [round(one, 3) for one in losses], flush=True)
    found["rates"] = RATES
    write(Path("benchmarks/results/distil_mup.json"), found, "python -m benchmarks.distil.mup")


if __name__ == "__main__":
    main()
