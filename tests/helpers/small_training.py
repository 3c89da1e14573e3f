"""A small network with every kind of part, its data and loss, for tests of the training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.run import FitResult
from lessen.train.settings import FitSettings


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.deep = nn.Linear(4, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.deep(self.drop(self.norm(self.table(ids)))).relu()).squeeze(1)


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Four batches of 16 rows."""
    generator = torch.Generator().manual_seed(epoch)
    ids = torch.randint(0, 20, (64,), generator=generator)
    return [(ids[i : i + 16], (ids[i : i + 16] % 2).float()) for i in range(0, 64, 16)]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


@torch.no_grad()
def validate(model: nn.Module) -> float:
    model.eval()
    ids = torch.arange(20)
    return -float(loss(model, (ids, (ids % 2).float())))


def same(left: nn.Module, right: nn.Module) -> bool:
    """Say whether the states are equal bit for bit."""
    other = right.state_dict()
    return all(torch.equal(value, other[name]) for name, value in left.state_dict().items())


def train(
    model: nn.Module, hooks: tuple[Hook, ...] = (), parameters: Any = None, device: str | None = None, **settings: Any
) -> FitResult:
    """Train on the batches above, settings by name."""
    return fit(
        model,
        batches=batches,
        loss=loss,
        validate=validate,
        settings=FitSettings(**settings),
        hooks=hooks,
        parameters=parameters,
        device=device,
    )


def calm(seed: int = 0) -> Small:
    """A network without dropout and BatchNorm, so that batches may be cut in any way."""
    model = small(seed)
    model.norm, model.drop = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return model
