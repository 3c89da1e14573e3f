"""Reference models by the name a study uses; each takes a `Layout` and returns logits."""

from __future__ import annotations

from torch import nn

from lessen.tasks.ctr.models.dcnv2 import DCNv2
from lessen.tasks.ctr.models.deepfm import DeepFM

MODELS: dict[str, type[nn.Module]] = {"dcnv2": DCNv2, "deepfm": DeepFM}
