"""The suite `conditional`: can an image encoder still follow a text that changes one thing about a picture?

GeneCIS (Vaze et al., arXiv 2306.07969): a reference picture, a condition in words and a gallery of the target and of
hard distractors; the query is half the picture's raw vector plus half the text's. What is lost between "picture alone"
and "picture and text" is composition: class accuracy hardly tells. Ties count against the target, which stands first in
the published files, so that a collapsed encoder scores nothing.

Data: the four annotation files (focus_attribute.json, ...) with Visual Genome and COCO pictures, brought by the user
(non-commercial licence), or coloured shapes drawn here (change_colour, change_shape).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.errors import DataError
from lessen.judges import towers
from lessen.judges.association import PALETTE
from lessen.judges.suite import Section, Suite, SuiteOptions, share, spoken, table
from lessen.metrics import Array, Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.exact import net_loss_interval, paired_p
from lessen.task import Split

MODES = ("picture", "text", "both")
SHAPES = {"tall": (0.35, 1.0), "wide": (1.0, 0.35), "round": (1.0, 1.0)}
SIDE = 96


class RecallAtOne(MeanMetric):
    """Share of templates whose target is the nearest of the gallery, by picture and text."""

    name, title, reads = "conditional-recall@1", "recall@1, picture and text", ("rank both",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each target that nothing beats or ties."""
        return np.asarray(outcomes["rank both"] == 0, dtype=np.float64)


class ConditionalOptions(SuiteOptions):
    """What a user may say of the pictures."""

    data: str | None = Field(None, description="folder with GeneCIS's annotation files; None: drawn shapes")
    attributes: str | None = Field(None, description="folder of Visual Genome's pictures <image_id>.jpg")
    objects: str | None = Field(None, description="folder of COCO val2017's pictures <12 digits>.jpg")
    most: int = Field(500, ge=2, description="templates of each task")
    seed: int = Field(0, ge=0, le=2**31, description="of the drawn shapes")


class Conditional(Suite):
    """Conditional retrieval with the picture alone, the text alone and both, before and after."""

    name, question = "conditional", "Can it still follow a text that changes one thing about a picture?"
    metrics: Mapping[str, Metric] = {"recall@1": RecallAtOne()}
    Options = ConditionalOptions

    def unable(self, model: nn.Module) -> str:
        """Say whether the model is no dual encoder."""
        return towers.unable(model, self.task)

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:  # noqa: ARG002 - the data are the suite's
        """Return, for each template, the rank of the target by three queries, its margin, and the slot that won."""
        self.check_able(model)
        templates, pictures = self._templates()
        seen = towers.encode_images(model, self.task, pictures)
        texts = sorted({each["condition"] for each in templates})
        said = dict(zip(texts, towers.encode_texts(model, self.task, texts), strict=True))
        gallery, rows = functional.normalize(seen, dim=1), []
        for each in templates:
            candidates = gallery[[each["target"], *each["gallery"]]]
            one, two = seen[each["reference"]], said[each["condition"]]
            sims = [candidates @ functional.normalize(query, dim=0) for query in (one, two, 0.5 * one + 0.5 * two)]
            ranks = [int((values[1:] >= values[0]).sum()) for values in sims]
            margin = float(sims[2][0] - sims[2][1:].max())
            rows.append((*ranks, margin, int(sims[2].argmax()), each["task"]))
        columns = [np.asarray(values) for values in zip(*rows, strict=True)]
        names = (*(f"rank {mode}" for mode in MODES), "margin", "winner", "task")
        return Outcomes(dict(zip(names, columns, strict=True)), given=frozenset({"task"}))

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return recall of all queries; caught is a net loss of targets found with the picture and the text."""
        before.check_same_units(after)
        rows, caught = [], []
        figures: dict[str, Any] = {}
        for at, name in enumerate(self._tasks):
            members = before["task"] == at
            found = {mode: _recall(mode, before, after, members) for mode in MODES}
            figures[name] = found
            for mode, told in found.items():
                ends = (told["low"], told["high"])
                recalls = [" / ".join(share(value) for value in told[side]) for side in ("before", "after")]
                rows.append((name, mode, *recalls, share(told["loss"], *ends), f"{told['p']:.3g}"))
            both, alone = found["both"], found["picture"]
            if both["p"] < 0.05 / len(self._tasks) and both["loss"] > 0:
                kept = alone["p"] >= 0.05 or alone["loss"] <= 0
                what = (
                    "composition is lost: the picture alone finds as much as before"
                    if kept
                    else "pictures are held less well"
                )
                caught.append(f"{name}: {what}; with the text {rows[-1][4]} of the targets are lost")
        moved = after["margin"].astype(np.float64) - before["margin"].astype(np.float64)
        half = 1.96 * float(moved.std(ddof=1)) / len(moved) ** 0.5
        text = spoken(float(moved.mean()), float(moved.mean()) - half, float(moved.mean()) + half)
        figures["margin"] = float(moved.mean())
        lines = (f"Margin of the target over the best distractor, mean change [95 %]: {text}.",)
        columns = ("task", "query", "recall@1 / 2 / 3, uncompressed", "compact", "net loss at 1 [95 %]", "p")
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), figures)

    def _templates(self) -> tuple[list[dict[str, Any]], Tensor]:
        """Return templates whose pictures are numbers, and the pictures [n, 3, side, side]."""
        found, pictures = (
            _drawn(self.options.seed, min(self.options.most, 60)) if self.options.data is None else self._read()
        )
        self._tasks = sorted({each["task"] for each in found})
        return [{**each, "task": self._tasks.index(each["task"])} for each in found], pictures

    def _read(self) -> tuple[list[dict[str, Any]], Tensor]:
        found: list[dict[str, Any]] = []
        places: dict[Any, int] = {}
        pictures: list[Tensor] = []
        files = sorted(Path(str(self.options.data)).glob("*_*.json"))
        for path in files:
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))[: self.options.most]
                for row in rows:
                    numbers = []
                    for item in (row["reference"], row["target"], *row["gallery"]):
                        key = (path.stem.endswith("attribute"), str(item.get("val_image_id", item.get("image_id"))),
                               tuple(item.get("instance_bbox") or ()))  # fmt: skip
                        if key not in places:
                            places[key] = len(pictures)
                            pictures.append(self._picture(*key))
                        numbers.append(places[key])
                    found.append({"task": path.stem, "condition": str(row["condition"]), "reference": numbers[0],
                                  "target": numbers[1], "gallery": numbers[2:]})  # fmt: skip
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is no annotation file of GeneCIS: {error}") from error
        if not found:
            raise DataError(f"{self.options.data} holds no annotation file such as focus_attribute.json")
        return found, torch.stack(pictures)

    def _picture(self, attribute: bool, number: str, box: tuple[float, ...]) -> Tensor:
        root = self.options.attributes if attribute else self.options.objects
        if root is None:
            raise DataError(
                f"give {'attributes' if attribute else 'objects'}=FOLDER, where the pictures of the templates are"
            )
        name = f"{number}.jpg" if attribute else f"{int(number):012d}.jpg"
        return towers.read_picture(Path(root) / name, box or None, SIDE * 2)


def _recall(mode: str, before: Outcomes, after: Outcomes, members: Array) -> dict[str, Any]:
    one, two = (each[f"rank {mode}"][members] for each in (before, after))
    lost, gained, n = int(((one == 0) & (two > 0)).sum()), int(((one > 0) & (two == 0)).sum()), int(members.sum())
    low, high = (float(end) for end in net_loss_interval(lost, gained, n))
    recalls = [[float((ranks < k).mean()) for k in (1, 2, 3)] for ranks in (one, two)]
    return {"before": recalls[0], "after": recalls[1], "loss": (lost - gained) / n, "low": low, "high": high,
            "p": paired_p(lost, gained)}  # fmt: skip


def _drawn(seed: int, most: int) -> tuple[list[dict[str, Any]], Tensor]:
    """Return templates of coloured shapes: the reference with another colour, or another shape; all others distract."""
    g = np.random.default_rng(seed)
    kinds = [(colour, shape) for colour in PALETTE for shape in SHAPES]
    pictures = torch.stack([drawn_shape(colour, shape) for colour, shape in kinds])
    found = []
    for task in ("change_colour", "change_shape"):
        for _ in range(most):
            colour, shape = kinds[int(g.integers(len(kinds)))]
            values = list(PALETTE if task == "change_colour" else SHAPES)
            new = str(g.choice([each for each in values if each not in (colour, shape)]))
            target = kinds.index((new, shape) if task == "change_colour" else (colour, new))
            reference = kinds.index((colour, shape))
            others = [at for at in range(len(kinds)) if at != target]  # the reference too: the condition ignored
            found.append({"task": task, "condition": new, "reference": reference, "target": target,
                          "gallery": [int(each) for each in g.permutation(others)]})  # fmt: skip
    return found, pictures


def drawn_shape(colour: str, shape: str) -> Tensor:
    """Return one shape of one colour on white, [3, side, side]."""
    wide, high = SHAPES[shape]
    down, across = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    inside = (across / (0.8 * wide)) ** 2 + (down / (0.8 * high)) ** 2 < 1
    return torch.where(inside[None], torch.tensor(PALETTE[colour])[:, None, None], torch.ones(3, 1, 1))
