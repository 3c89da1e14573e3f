"""Artifacts written before format 2 load as they did, and whole artifacts are still written as they were.

`format1/` was written by the package as it stood at commit cfc27b9.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lessen
from lessen.artifact import folder as artifact
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.tables.mixed_bits import MixedBitsEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.tasks.vision.vit import PlainViT, ViTOptions

OLD = Path(__file__).parent / "format1"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Embedding(30, 8), nn.Embedding(30, 8)
        self.hidden, self.out = nn.Linear(16, 16), nn.Linear(16, 1)
        self.again = self.out

    def forward(self, ids):
        joined = torch.cat([self.left(ids[:, 0]), self.right(ids[:, 1])], dim=1)
        return self.again(torch.relu(self.hidden(joined)))[:, 0]


def vit():
    return PlainViT(ViTOptions(image_size=8, patch_size=4, width=8, depth=2, heads=2, classes=3, stem=()))


@pytest.mark.parametrize(("name", "base"), [("own", Net), ("task", lambda: None), ("tokens", vit)])
def test_old_artifacts_give_the_outputs_that_they_recorded(name, base):
    found = lessen.verify(OLD / name, model=base())
    assert found.probe in ("equal", "close")
    assert found.serving_bytes == found.stored_bytes


def test_old_modules_come_back_by_their_classes():
    model = lessen.load(OLD / "own", model=Net())
    assert isinstance(model.left, QuantizedEmbedding)
    assert isinstance(model.right, MixedBitsEmbedding)
    assert isinstance(model.hidden, Int8Linear)
    assert model.again is model.out


@pytest.mark.parametrize(("name", "base"), [("own", Net), ("tokens", vit)])
def test_a_whole_artifact_is_written_as_before_to_the_byte(name, base, tmp_path):
    model = lessen.load(OLD / name, model=base())
    size = artifact.save(tmp_path / "again", model, base())
    assert size == artifact.stored_size(model, base())
    old = json.loads((OLD / name / artifact.STRUCTURE).read_text())
    new = json.loads((tmp_path / "again" / artifact.STRUCTURE).read_text())
    assert {**old, "lessen": new["lessen"], "torch": new["torch"]} == new
    assert (tmp_path / "again" / artifact.WEIGHTS).read_bytes() == (OLD / name / artifact.WEIGHTS).read_bytes()
