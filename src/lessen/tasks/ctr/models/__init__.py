"""Reference models by the name a study uses; each takes a `Layout` and returns logits [B]."""

from __future__ import annotations

from typing import Literal

from torch import nn

from lessen.tasks.ctr.models.autoint import AutoInt, AutoIntPlus
from lessen.tasks.ctr.models.dcn import DCN
from lessen.tasks.ctr.models.dcnv2 import DCNv2
from lessen.tasks.ctr.models.deepfm import DeepFM
from lessen.tasks.ctr.models.din import DIN
from lessen.tasks.ctr.models.dlrm import DLRM
from lessen.tasks.ctr.models.dnn import DNN
from lessen.tasks.ctr.models.fgcnn import FGCNN
from lessen.tasks.ctr.models.finalmlp import FinalMLP
from lessen.tasks.ctr.models.fm import FactorisationMachine
from lessen.tasks.ctr.models.ipnn import IPNN
from lessen.tasks.ctr.models.lr import LogisticRegression
from lessen.tasks.ctr.models.xdeepfm import XDeepFM

ModelName = Literal[
    "lr", "fm", "dnn", "ipnn", "deepfm", "dcn", "dcnv2", "xdeepfm", "dlrm", "autoint", "autoint+", "din", "fgcnn",
    "finalmlp",
]  # fmt: skip

MODELS: dict[ModelName, type[nn.Module]] = {
    "lr": LogisticRegression,
    "fm": FactorisationMachine,
    "dnn": DNN,
    "ipnn": IPNN,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "xdeepfm": XDeepFM,
    "dlrm": DLRM,
    "autoint": AutoInt,
    "autoint+": AutoIntPlus,
    "din": DIN,
    "fgcnn": FGCNN,
    "finalmlp": FinalMLP,
}
