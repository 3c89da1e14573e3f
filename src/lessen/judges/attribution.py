"""The suite `attribution`: is the compact classifier right for the same reason, and does it see all of the evidence?

COMET (Zhang, Lee and Wang, arXiv 2407.19308): a selector marks pixels s in (0, 1) so that the marked part alone gives
the right class, and a detector, a fixed copy of the uncompressed model, no longer finds the class in what is left:

    x_s = s x + (1 - s) q      L = CE(P(x_s)) + c max(CE(P(x_s)) - CE(D(x_c)) + gap, 0) + a max(mean s - area, 0)
    x_c = (1 - s) x + s q

The selector is fitted once on the uncompressed model, which is predictor and detector (the one-player form); it then
judges both models: what each makes of the marked part (sufficiency) and of the rest (completeness, lower is better).
Maps of each model itself, gradient times input smoothed, tell whether the same pixels matter: their rank correlation,
and how often both agree on the class for another reason (overlap of the top tenth below 0.3).

Differs from the paper: a selector of four small convolutions on the picture in place of DeepLab, fitted for hundreds of
steps, for pictures of 16 to 64 pixels; q is the mean picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.judges.reading import evaluated, few
from lessen.judges.suite import Section, Suite, SuiteOptions, share, table
from lessen.metrics import Array, Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.exact import exact_interval, net_loss_interval, paired_p
from lessen.task import Split
from lessen.train.device import device_of, to_device

TOP, ALIKE = 0.1, 0.3
"""Share of the pixels that a map points at, and the overlap below which two maps point elsewhere."""


class Selector(nn.Module):
    """Pictures [n, channels, height, width] to marks in (0, 1), [n, 1, height, width]."""

    def __init__(self, channels: int, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4), nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Return how much each pixel is marked."""
        marks: Tensor = torch.sigmoid(self.layers(pictures))
        return marks


def mixed(pictures: Tensor, marks: Tensor, filler: Tensor) -> tuple[Tensor, Tensor]:
    """Return the marked part and the rest, the other filled: x_s and x_c."""
    return marks * pictures + (1 - marks) * filler, (1 - marks) * pictures + marks * filler


class Sufficiency(MeanMetric):
    """Share of pictures whose marked part alone is answered right."""

    name, title, reads = "sufficiency", "right on the marked part alone", ("marked",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each right answer."""
        return outcomes["marked"].astype(np.float64)


class AttributionOptions(SuiteOptions):
    """What a user may say of the selector."""

    examples: int = Field(400, ge=20, le=10**6, description="test pictures")
    steps: int = Field(200, ge=1, le=10**6, description="that fit the selector")
    area: float = Field(0.3, gt=0, lt=1, description="share of the picture that is free to mark")
    gap: float = Field(1.0, ge=0, description="nats by which the rest must be harder than the marked part")
    weight: float = Field(1.0, ge=0, description="of that gap")
    price: float = Field(20.0, ge=0, description="of area above what is free")
    seed: int = Field(0, ge=0, le=2**31, description="of the selector")


class Attribution(Suite):
    """Evidence of both models, marked once on the uncompressed one."""

    name, question = "attribution", "Is it right for the same reason?"
    metrics: Mapping[str, Metric] = {"sufficiency": Sufficiency()}
    Options = AttributionOptions

    def __init__(self, options: Any = None, task: Any = None) -> None:
        super().__init__(options, task)
        self._selector: tuple[Selector, Tensor] | None = None
        self._maps: list[Floats] = []

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each picture, whether the whole, the marked part and the rest are answered right.

        The selector is fitted on the first model that is judged.

        Raises:
            CannotAnswer: the inputs are no pictures with classes, or the model gives no gradient to fit a selector on.
        """
        pictures, target = self._pictures(split)
        with evaluated(model):
            if self._selector is None:
                self._selector = self._fitted(model)
            selector, filler = self._selector
            with torch.no_grad():
                marks = selector(pictures)
                kept, rest = mixed(pictures, marks, filler)
                right = [self._answers(model, each) == target for each in (pictures, kept, rest)]
            maps = self._map(model, pictures)
        self._maps = [*self._maps[-1:], maps] if maps is not None else self._maps
        names = ("whole", "marked", "rest")
        found: dict[str, Array] = {name: each.numpy() for name, each in zip(names, right, strict=True)}
        found["area"] = marks.mean(dim=(1, 2, 3)).double().numpy()
        return Outcomes(found, given=frozenset({"area"}))

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return sufficiency, completeness and maps; caught is evidence that is proved not to be enough any more."""
        before.check_same_units(after)
        rows, caught = [], []
        figures: dict[str, Any] = {"area": float(before["area"].mean())}
        both = before["whole"].astype(bool) & after["whole"].astype(bool)
        if not both.any():
            raise self.refuse("no picture is answered right by both models")
        for name, words in (("whole", "whole picture"), ("marked", "marked part alone"), ("rest", "the rest")):
            one, two = before[name].astype(bool), after[name].astype(bool)
            lost, gained, n = int((one & ~two).sum()), int((~one & two).sum()), len(one)
            low, high = (float(end) for end in net_loss_interval(lost, gained, n))
            p = paired_p(lost, gained)
            figures[name] = {"before": float(one.mean()), "after": float(two.mean()), "low": low, "high": high, "p": p}
            rows.append(
                (words, share(one.mean()), share(two.mean()), share((lost - gained) / n, low, high), f"{p:.3g}")
            )
        # among pictures that both answer right: is the evidence of the one still evidence for the other?
        lost = int((before["marked"].astype(bool) & ~after["marked"].astype(bool))[both].sum())
        gained = int((~before["marked"].astype(bool) & after["marked"].astype(bool))[both].sum())
        if paired_p(lost, gained) < 0.05 and lost > gained:
            said = share(lost / both.sum(), *exact_interval(lost, int(both.sum())))
            caught.append(
                f"the evidence no longer suffices: of what both answer right {said} is lost on the marked part"
            )
        rest = figures["rest"]
        if rest["p"] < 0.05 and rest["after"] > rest["before"] + 0.02:
            caught.append(f"it answers from what was left out: {rows[2][2]} right on the rest, {rows[2][1]} before")
        lines = [f"The selector marks {share(figures['area'])} of a picture on average."]
        lines += self._compared(both, figures, caught)
        columns = ("shown", "right, uncompressed", "compact", "net loss [95 %]", "p")
        return Section(self.name, self.question, tuple(caught), tuple(lines), (table("", columns, rows),), figures)

    def _compared(self, both: Array, figures: dict[str, Any], caught: list[str]) -> list[str]:
        if len(self._maps) < 2:
            return ["One of the models gives no gradient, so that its own map of pixels is unknown."]
        one, two = self._maps
        ranks = [np.argsort(np.argsort(each, axis=1), axis=1).astype(np.float64) for each in (one, two)]
        centred = [each - each.mean(axis=1, keepdims=True) for each in ranks]
        alike = (centred[0] * centred[1]).sum(axis=1) / np.sqrt(
            (centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1)
        )
        top = max(1, int(TOP * one.shape[1]))
        chosen = [each >= each.shape[1] - top for each in ranks]
        overlap = (chosen[0] & chosen[1]).sum(axis=1) / (chosen[0] | chosen[1]).sum(axis=1)
        elsewhere, n = int((overlap < ALIKE)[both].sum()), int(both.sum())
        said = share(elsewhere / n, *exact_interval(elsewhere, n))
        figures |= {"rank correlation": float(alike.mean()), "elsewhere": elsewhere / n}
        if exact_interval(elsewhere, n)[0] > 0.5:
            caught.append(f"right for another reason: {said} of what both answer right is read off other pixels")
        return [
            f"Maps of pixels: rank correlation {alike.mean():.2f}; of what both answer right {said} point elsewhere."
        ]

    def _pictures(self, split: Split) -> tuple[Tensor, Tensor]:
        pictures, target = [], []
        for call in few(self.task, split, self.options.examples):
            inputs, classes = self.task.inputs(call), self.task.target(call)
            if isinstance(inputs, Mapping) and len(inputs) == 1:
                inputs = next(iter(inputs.values()))
            if not isinstance(inputs, Tensor) or inputs.ndim != 4 or classes.ndim != 1 or classes.is_floating_point():
                raise self.refuse(f"it needs pictures with classes; task {self.task.name!r} gives others")
            pictures.append(inputs)
            target.append(classes)
        return torch.cat(pictures), torch.cat(target)

    def _scores(self, model: nn.Module, pictures: Tensor) -> Tensor:
        inputs = self.task.inputs(next(iter(self.task.batches("test"))))
        given: Any = {next(iter(inputs)): pictures} if isinstance(inputs, Mapping) else pictures
        batch = (given, torch.zeros(len(pictures), dtype=torch.int64))
        return self.task.forward(model, to_device(batch, device_of(model))).float().cpu()

    def _answers(self, model: nn.Module, pictures: Tensor) -> Tensor:
        return torch.cat([self._scores(model, part).argmax(dim=1) for part in torch.split(pictures, 256)])

    def _fitted(self, model: nn.Module) -> tuple[Selector, Tensor]:
        """Return the selector, fitted on validation pictures, and the mean picture."""
        pictures, _ = self._pictures("validation")
        if self._map(model, pictures[:2]) is None:
            raise self.refuse("the uncompressed model gives no gradient to fit a selector on")
        filler = pictures.mean(dim=0, keepdim=True)
        with torch.no_grad():
            answers = self._answers(model, pictures)
        options = self.options
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(options.seed)
            selector = Selector(pictures.shape[1])
            optimizer = torch.optim.AdamW(selector.parameters(), lr=5e-3)
            for _ in range(options.steps):
                rows = torch.randint(len(pictures), (min(64, len(pictures)),))
                marks = selector(pictures[rows])
                kept, rest = mixed(pictures[rows], marks, filler)
                scores = self._scores(model, torch.cat([kept, rest]))
                one, two = (functional.cross_entropy(each, answers[rows]) for each in scores.chunk(2))
                area = (marks.mean(dim=(1, 2, 3)) - options.area).clamp(min=0).mean()
                loss = one + options.weight * (one - two + options.gap).clamp(min=0) + options.price * area
                weights = list(selector.parameters())  # the model's own gradients are left as they are
                for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight.grad = gradient
                optimizer.step()
        return selector.eval(), filler

    def _map(self, model: nn.Module, pictures: Tensor) -> Floats | None:
        """Return |gradient x input| of the answer, over channels and smoothed, [n, pixels]; None: no gradient."""
        found = []
        for part in torch.split(pictures, 128):
            with torch.enable_grad():
                moving = part.clone().requires_grad_()
                scores = self._scores(model, moving)
                known = scores.requires_grad
                gradient = (
                    torch.autograd.grad(scores.amax(dim=1).sum(), moving, allow_unused=True)[0] if known else None
                )
            if gradient is None:
                return None
            heat = functional.avg_pool2d((gradient * part).abs().sum(dim=1, keepdim=True), 3, stride=1, padding=1)
            found.append(heat.flatten(1))
        values: Floats = torch.cat(found).double().numpy()
        return values
