"""Small real training runs whose checkpoints the tests pack, and what reads the log and the archive's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.log import Log


class Net(nn.Module):
    """A table, two layers with a tied output, a norm with running statistics and an odd-length bias."""

    def __init__(self, width: int = 24, rows: int = 1500) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 8)
        self.inner = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.middle = nn.Linear(width, width)
        self.out = nn.Linear(width, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(F.relu(self.inner(self.table(ids).mean(1))))
        return self.out(F.relu(self.middle(x)))


def optimizer_of(net: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(net.parameters(), lr=2e-3)
    if kind == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.1)
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, step: int, seed: int = 0) -> float:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    ids = torch.randint(0, 1500, (32, 5), generator=generator)
    target = ids.sum(1) % 7
    optimizer.zero_grad()
    loss = F.cross_entropy(net(ids), target)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "note": "kept as it is",
    }


def make_run(folder: Path, checkpoints: int = 5, every: int = 8, kind: str = "adam", width: int = 24) -> list[Path]:
    """Train and save `checkpoints` torch files named step-N.pt; return them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = Net(width)
    optimizer = optimizer_of(net, kind)
    paths = []
    for step in range(1, checkpoints * every + 1):
        train_step(net, optimizer, step)
        if step % every == 0:
            paths.append(folder / f"step-{step}.pt")
            torch.save(state_of(net, optimizer, step), paths[-1])
    return paths


def resume(checkpoint: Path, steps: int, seed: int) -> dict[str, Any]:
    """Continue from a file of `make_run`: the function that `prove` calls."""
    state = torch.load(checkpoint, weights_only=True)
    net = Net()
    net.load_state_dict(state["model"])
    optimizer = optimizer_of(net, "adam")
    optimizer.load_state_dict(state["optimizer"])
    losses = [train_step(net, optimizer, state["step"] + k, seed) for k in range(1, steps + 1)]
    return {"losses": losses, "final": sum(losses[-5:]) / 5}


class Notes(Log):
    """Keeps the notes of a log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of an archive's files by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}
