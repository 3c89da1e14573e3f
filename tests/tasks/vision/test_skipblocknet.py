"""SkipblockNet: its shape by the paper's table, its skips, and a training by the bias loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.architectures.stages import find_stages
from lessen.methods.distil.bias_loss import BiasLoss
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks.vision.skipblocknet import SkipblockNet, rounded
from lessen.train.settings import FitSettings


def small(classes: int = 4) -> SkipblockNet:
    torch.manual_seed(0)
    return SkipblockNet(classes=classes, width=0.25, stride=1, dropout=0.0)


def counted() -> int:
    """Parameters of size M by the table, in arithmetic of its own."""

    def block(a: int, b: int, kernel: int, hidden: int, excite: bool, widen: bool = True) -> int:
        total = (a * hidden + 2 * hidden if widen else 0) + hidden * kernel**2 + 2 * hidden + hidden * b + 2 * b
        squeezed = rounded(hidden / 4)
        return total + (2 * hidden * squeezed + squeezed + hidden if excite else 0)

    total = 3 * 16 * 9 + 32 + block(16, 16, 3, 16, False, widen=False)
    before = 16
    table = [
        (3, 64, 24, 0), (3, 72, 24, 0), (5, 72, 40, 1), (5, 120, 40, 1), (5, 240, 40, 1), (3, 240, 80, 0),
        (3, 200, 80, 0), (3, 184, 80, 0), (3, 184, 80, 0), (3, 480, 112, 1), (3, 672, 112, 1), (5, 672, 160, 1),
        (5, 960, 160, 1), (5, 960, 160, 1),
    ]  # fmt: skip
    for kernel, hidden, after, excite in table:
        total += block(before, after, kernel, hidden, bool(excite))
        before = after
    total += block(16, 40, 5, 96, False) + block(16, 80, 3, 40, False)
    return total + 160 * 960 + 2 * 960 + 960 * 1280 + 1280 + 1280 * 1000 + 1000


def test_size_m_has_the_parameters_of_its_table() -> None:
    with torch.device("meta"):
        model = SkipblockNet()
    assert sum(one.numel() for one in model.parameters()) == counted() == 5_532_064


def test_maps_are_halved_as_at_224_pixels() -> None:
    model = small().eval()
    seen = []
    for stage in (model.stem, *model.stages):
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[2]))
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    assert seen == [64, 16, 8, 8, 4]
    assert find_stages(model, lambda one: one(torch.zeros(2, 3, 32, 32)))[-1] == "last"


def test_each_skip_adds_to_what_it_skips() -> None:
    model = small().eval()
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(pictures)
        for skip in model.skips:
            norm: Any = skip.block.layers[-2]
            kept = norm.weight.clone()
            norm.weight.zero_()
            assert not torch.equal(model(pictures), whole)
            norm.weight.copy_(kept)
        assert torch.equal(model(pictures), whole)


class Stripes(Task):
    """Which way and how wide stripes are; batches are (float32 [B, 3, 16, 16], class int64 [B])."""

    name = "stripes"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=3, learning_rate=3e-3, patience=None, keep="last", plateau_factor=1.0)

    def build(self) -> nn.Module:
        return small()

    def batches(self, split: str, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(len(split) + seed)
        for _ in range(10 if split == "train" else 2):
            labels = torch.randint(4, (32,), generator=generator)
            wave = torch.sin(torch.arange(16.0)[None] * (0.5 + 0.9 * (labels % 2))[:, None])[:, None, None]
            pictures = torch.where((labels > 1)[:, None, None, None], wave.transpose(2, 3), wave).expand(-1, 3, 16, 16)
            yield pictures + 0.3 * torch.randn(32, 3, 16, 16, generator=generator), labels

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(self.forward(model, batch), batch[1])


def test_the_bias_loss_teaches_it() -> None:
    task, model = Stripes(), small()
    found, _ = Recipe([BiasLoss(layer="last")]).apply(model, task)
    assert found.state_dict().keys() == model.state_dict().keys()
    assert task.score(found, "test") > 0.5 > task.score(model.eval(), "test")
