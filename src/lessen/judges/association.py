"""The suite `association`: asked for the lemon's colour, does the model answer with the other object's?

Concept association bias (Yamada et al., arXiv 2212.12043): a contrastive model holds a picture as a bag of concepts.
The text "the colour of the lemon is ..." implies yellow already; one that names purple covers the eggplant beside it
too. Pictures hold one object, or two side by side in both orders; answers are the likeliest colour. The bias is
(p_other + 1 - p_correct) / 2, 0.5 by chance (the form is ours; the rates stand beside it). Pairs whose colours were
swapped are the control: what is natural can be answered without looking.

Objects are drawn here (shapes of typical colours); photographs come in a folder <object>-<colour>/ of cut-outs.
"""

from __future__ import annotations

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
from lessen.judges.suite import Section, Suite, SuiteOptions, grouped_change, spoken, table
from lessen.metrics import Floats, MeanMetric, Metric, Outcomes
from lessen.task import Split

PALETTE = {
    "red": (0.85, 0.1, 0.1), "yellow": (0.95, 0.85, 0.1), "green": (0.15, 0.6, 0.2), "orange": (0.95, 0.5, 0.05),
    "purple": (0.45, 0.1, 0.55),
}  # fmt: skip
DRAWN = {
    "tomato": ("red", 1.0, 1.0), "lemon": ("yellow", 1.0, 0.7), "banana": ("yellow", 1.0, 0.35),
    "cucumber": ("green", 1.0, 0.3), "orange": ("orange", 0.85, 1.0), "carrot": ("orange", 0.3, 1.0),
    "eggplant": ("purple", 0.5, 1.0), "lime": ("green", 0.9, 0.4),
}  # fmt: skip
"""Colour, width and height of ellipses."""
WORDINGS = (
    "In this picture, the color of the {object} is {colour}.",
    "The {object} in the image is {colour}.",
    "A photo with a {object} that is {colour}.",
)
SINGLE, NATURAL, SWAPPED = 0, 1, 2
SIDE = 112


class Bias(MeanMetric):
    """Concept association bias over the pictures of two objects in their own colours."""

    name, title, higher_is_better, reads = "association-bias", "association bias", False, ("correct", "other", "kind")

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return what each picture of two objects adds, and whether it counts."""
        counts = (outcomes["kind"] == NATURAL).astype(np.float64)
        return np.stack([self.each(outcomes) * counts, counts], axis=1)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return (other + 1 - correct) / 2 of each picture."""
        return np.asarray((outcomes["other"].astype(np.float64) + 1.0 - outcomes["correct"].astype(np.float64)) / 2.0)


class AssociationOptions(SuiteOptions):
    """What a user may say of the objects."""

    data: str | None = Field(None, description="folder of cut-outs <object>-<colour>/*.png; None: drawn objects")
    least: float = Field(
        0.8, ge=0, le=1, description="share right alone below which an object is left out, of the original"
    )
    draws: int = Field(3, ge=1, le=100, description="pictures of each pair and order")
    seed: int = Field(0, ge=0, le=2**31, description="of positions and sizes")


class Association(Suite):
    """Colours of one of two objects, before and after."""

    name, question = "association", "Does it mix up what belongs to which object?"
    metrics: Mapping[str, Metric] = {"bias": Bias()}
    columns = ("correct", "other", "margin", "kind", "object")
    Options = AssociationOptions

    def unable(self, model: nn.Module) -> str:
        """Say whether the model is no dual encoder."""
        return towers.unable(model, self.task)

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:  # noqa: ARG002 - the data are the suite's
        """Return, for each picture and its asked object, whether the answer is its colour or the other object's."""
        self.check_able(model)
        objects = self._objects()
        names, colours = list(objects), sorted({colour for colour, _ in objects.values()})
        texts = [w.format(object=name, colour=colour) for name in names for colour in colours for w in WORDINGS]
        words = functional.normalize(towers.encode_texts(model, self.task, texts), dim=1)
        words = words.reshape(len(names), len(colours), len(WORDINGS), -1)
        rows: list[tuple[Any, ...]] = []
        for kind, pictures, asked, beside in self._pictures(objects):
            seen = functional.normalize(towers.encode_images(model, self.task, pictures), dim=1)
            scores = torch.einsum("kcwd,kd->kcw", words[asked], seen).mean(dim=2)
            for at in range(len(asked)):
                own, other = (colours.index(objects[names[each]][0]) for each in (asked[at], beside[at]))
                if kind == SWAPPED:
                    own, other = other, own
                answer = int(scores[at].argmax())
                margin = float(scores[at, own] - scores[at, other])
                pair = asked[at] * len(names) + beside[at]
                rows.append((answer == own, answer == other and own != other, margin, kind, asked[at], pair))
        columns = [np.asarray(values) for values in zip(*rows, strict=True)]
        made = dict(zip(self.columns, columns[:-1], strict=True))
        return Outcomes(made, columns[-1], given=frozenset({"kind", "object"}))

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return rates of both models; caught is binding that is lost while single objects stay right."""
        before.check_same_units(after)
        alone = before["kind"] == SINGLE
        kept = [
            each for each in np.unique(before["object"])
            if before["correct"][alone & (before["object"] == each)].mean() >= self.options.least
        ]  # fmt: skip
        if len(kept) < 2:
            raise self.refuse(
                f"the uncompressed model names the colour of {len(kept)} objects alone; none can be mixed up"
            )
        used = np.isin(before["object"], kept)
        rows = []
        figures: dict[str, Any] = {}
        for name, kind in (("one object", SINGLE), ("two objects", NATURAL), ("two objects, colours swapped", SWAPPED)):
            members = used & (before["kind"] == kind)
            for column in ("correct", "other"):
                figures[f"{name}: {column}"] = found = grouped_change(before, after, column, members)
                rows.append(
                    (name, column, f"{found[0]:.3f}", f"{found[1]:.3f}", spoken(found[1] - found[0], *found[2:], 3))
                )
        figures["objects"] = [int(each) for each in kept]
        bias = [
            float((figures["two objects: other"][at] + 1 - figures["two objects: correct"][at]) / 2) for at in (0, 1)
        ]
        figures["bias"] = bias
        caught, other, single = [], figures["two objects: other"], figures["one object: correct"]
        if other[2] > 0 and single[1] > single[0] - 0.01:
            caught.append(
                f"binding is lost: the other object's colour is named more often, {rows[3][4]}, alone it is right"
            )
        elif single[3] < 0:
            caught.append(f"colours are lost: objects alone are named right less often, {rows[0][4]}")
        lines = (
            f"Association bias {bias[0]:.3f} before, {bias[1]:.3f} after; 0.5 is chance. {len(kept)} objects that the "
            "uncompressed model names right alone; intervals are over pairs of objects.",
        )
        columns = ("pictures", "answer", "uncompressed", "compact", "difference [95 %]")
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), figures)

    def _objects(self) -> dict[str, tuple[str, Any]]:
        if self.options.data is None:
            return {name: (colour, (wide, high)) for name, (colour, wide, high) in DRAWN.items()}
        found: dict[str, tuple[str, Any]] = {}
        for place in sorted(Path(self.options.data).glob("*-*")):
            name, _, colour = place.name.rpartition("-")
            pictures = sorted([*place.glob("*.png"), *place.glob("*.jpg")])
            if pictures:
                found[name] = colour, torch.stack([towers.read_picture(path, side=SIDE) for path in pictures[:10]])
        if len(found) < 2:
            raise DataError(
                f"{self.options.data} holds {len(found)} objects; give folders such as lemon-yellow/ with pictures"
            )
        return found

    def _pictures(self, objects: Mapping[str, tuple[str, Any]]) -> list[tuple[int, Tensor, list[int], list[int]]]:
        """Return pictures of each kind, the object that is asked for and the one beside it."""
        g, names = np.random.default_rng(self.options.seed), list(objects)
        apart = [
            (a, b) for a in range(len(names)) for b in range(len(names)) if objects[names[a]][0] != objects[names[b]][0]
        ]
        singles = [a for a in range(len(names)) for _ in range(2 * self.options.draws)]
        kinds = [(SINGLE, [(a, a) for a in singles])]
        pairs = [pair for pair in apart for _ in range(2 * self.options.draws)]
        kinds += [(NATURAL, pairs), *([(SWAPPED, pairs)] if self.options.data is None else [])]
        found = []
        for kind, asked in kinds:
            drawn = []
            for at, (a, b) in enumerate(asked):
                picture = torch.ones(3, SIDE, 2 * SIDE)
                sides = (0, 1) if at % 2 else (1, 0)
                for place, one, other in ((sides[0], a, b), (sides[1], b, a))[: 1 if kind == SINGLE else 2]:
                    colour = objects[names[other if kind == SWAPPED else one]][0]
                    picture[:, :, place * SIDE : (place + 1) * SIDE] = _half(objects[names[one]][1], colour, g)
                drawn.append(functional.pad(picture, (0, 0, SIDE // 2, SIDE // 2), value=1.0))
            found.append((kind, torch.stack(drawn), [a for a, _ in asked], [b for _, b in asked]))
        return found


def _half(shape: Any, colour: str, g: np.random.Generator) -> Tensor:
    """Return one object on white, [3, side, side]: one of its cut-outs, or an ellipse of its shape and colour."""
    if isinstance(shape, Tensor):
        return shape[int(g.integers(len(shape)))]
    wide, high = shape
    size, x, y = g.uniform(0.3, 0.42), *g.uniform(0.45, 0.55, 2)
    down, across = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    reach = ((across - x) / (size * wide)) ** 2 + ((down - y) / (size * high)) ** 2
    shade = torch.tensor(PALETTE[colour])[:, None, None] * (1.0 - 0.35 * reach.clamp(max=1.0))
    return torch.where(reach[None] < 1, shade, torch.ones(3, 1, 1))
