"""The suite `shortcut`: did compression make the model lean on another cue?

Inputs on which two cues say different things are put to both models; reliance is the mean agreement of the answer with
the first cue less that with the second, from -1 to 1 (the signed form of Hermann et al., arXiv 2310.16228). A task that
knows its cues brings the inputs (`cues`: the paper's grid). Images of any other task are crossed from the test split:
the border of one picture around the centre of another, and the fine detail of one on the coarse shapes of another.
A model that has broken down answers at random and has a reliance near 0: below half of what the uncompressed one has
over chance nothing is read from it.
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
from lessen.judges.suite import Section, Suite, SuiteOptions, spoken, table
from lessen.metrics import Array, Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.intervals import crossed_interval
from lessen.task import Split
from lessen.train.device import device_of, to_device

ORDINARY = "test split"
Probe = tuple[list[Any], Array, Array]
"""Inputs in batches, and the class that each of two cues says."""


class Reliance(MeanMetric):
    """Agreement with the first cue less agreement with the second, over the inputs on which they are crossed."""

    name, title, reads = "reliance", "reliance on the first cue", ("first", "second", "probe")

    def each(self, outcomes: Outcomes) -> Floats:
        """Return twice the difference of both agreements, so that it goes from -1 to 1."""
        agreed = outcomes["first"].astype(np.float64) - outcomes["second"].astype(np.float64)
        return np.asarray(2.0 * agreed)


class ShortcutOptions(SuiteOptions):
    """What a user may say of cues."""

    most: float = Field(0.1, gt=0, le=2, description="change of reliance that is accepted where the cue stays the same")
    examples: int = Field(1000, ge=50, le=10**6, description="crossed pictures of each kind")
    centre: float = Field(0.7, gt=0.1, lt=1, description="side of the centre by that of the picture")
    seed: int = Field(0, ge=0, le=2**31, description="of the pairs of pictures")


class Shortcut(Suite):
    """Reliance on one of two cues, before and after."""

    name, question = "shortcut", "Does it lean on the same cue?"
    metrics: Mapping[str, Metric] = {"reliance": Reliance()}
    Options = ShortcutOptions

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each input, whether the answer is what the first cue says and what the second says.

        Rows of probe 0 are the ordinary test split: `first` is whether the answer is right.
        """
        columns: dict[str, list[Array]] = {"first": [], "second": [], "probe": []}
        ordinary = few(self.task, split, 10**9)
        right = np.concatenate([self._answers(model, call) == np.asarray(self.task.target(call)) for call in ordinary])
        chance = float(np.unique(np.concatenate([self.task.target(c) for c in ordinary]), return_counts=True)[1].max())
        self._chance = chance / len(right)
        self._names = [ORDINARY]
        _add(columns, right, np.zeros(len(right), dtype=bool), 0)
        for number, (name, (calls, first, second)) in enumerate(self._probes(ordinary).items(), 1):
            given = [self._answers(model, (call, torch.zeros(len(_one(call)), dtype=torch.int64))) for call in calls]
            answers = np.concatenate(given)
            _add(columns, answers == first, answers == second, number)
            self._names.append(name)
        joined = {name: np.concatenate(values) for name, values in columns.items()}
        return Outcomes(joined, given=frozenset({"probe"}))

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return both reliances; caught is a cue that switched: another sign, or a change above `most`, both proved."""
        before.check_same_units(after)
        probe = before["probe"]
        accuracy = [float(each["first"][probe == 0].mean()) for each in (before, after)]
        broken = accuracy[1] < self._chance + 0.5 * (accuracy[0] - self._chance)
        rows, caught = [], []
        figures: dict[str, Any] = {"accuracy": accuracy}
        best = self.task.best() if callable(getattr(self.task, "best", None)) else None  # type: ignore[attr-defined]
        for number, name in enumerate(self._names[1:], 1):
            one, two = (_of(each, probe == number) for each in (before, after))
            low, high = crossed_interval((two - one)[:, None], 3.0 / int((probe == number).sum()))
            first, second = float(one[0]), float(two[0])
            said = spoken(second - first, low, high)
            rows.append((name, f"{first:+.3f}", f"{second:+.3f}", said))
            figures[name] = {"before": first, "after": second, "low": low, "high": high}
            switched = first * second < 0 and abs(second - first) > self.options.most / 2
            proved = low is not None and high is not None and (low > 0 or high < 0)
            if proved and not broken and (switched or abs(second - first) > self.options.most):
                what = "the cue switched" if switched else "the reliance moved"
                caught.append(f"{name}: {what}, from {first:+.3f} to {second:+.3f}, by {said}")
        lines = [
            f"Accuracy on the test split: {accuracy[0]:.4f} before, {accuracy[1]:.4f} after; 1 is all the first cue."
        ]
        if best is not None:
            figures["best"] = best
            lines.append(f"The best classifier's reliance on the grid is {best:+.2f}.")
        if broken:
            lines.append("The compact model is near chance: nothing is read from its reliance.")
        columns = ("cues: first against second", "uncompressed", "compact", "difference [95 %]")
        return Section(self.name, self.question, tuple(caught), tuple(lines), (table("", columns, rows),), figures)

    def _probes(self, ordinary: list[Any]) -> dict[str, Probe]:
        crossed = getattr(self.task, "crossed", None)
        if callable(crossed):
            return {f"{name}: shortcut against reliable cue": probe for name, probe in crossed().items()}
        pictures, kinds = self._pictures(ordinary)
        generator = np.random.default_rng(self.options.seed)
        one, two = (generator.integers(0, len(kinds), 4 * self.options.examples) for _ in range(2))
        apart = np.flatnonzero(kinds[one] != kinds[two])[: self.options.examples]
        if len(apart) < 2:
            raise self.refuse("the test split holds one class, so that no two pictures say different things")
        one, two = one[apart], two[apart]
        outer, inner = pictures[one], pictures[two]
        ring = _ring(pictures.shape[-2:], self.options.centre)
        coarse = [_smooth(each) for each in (outer, inner)]
        found = {
            "border against centre": torch.where(ring, outer, inner),
            "fine detail against coarse shapes": outer - coarse[0] + coarse[1],
        }
        return {name: (list(torch.split(made, 256)), kinds[one], kinds[two]) for name, made in found.items()}

    def _pictures(self, ordinary: list[Any]) -> tuple[Tensor, Array]:
        pictures, kinds, count = [], [], 0
        for call in ordinary:
            inputs, target = _one(self.task.inputs(call)), self.task.target(call)
            if inputs.ndim != 4 or not inputs.is_floating_point() or target.ndim != 1 or target.is_floating_point():
                raise self.refuse(
                    f"it needs pictures and classes, or a task that crosses cues; {self.task.name!r} gives inputs "
                    f"{tuple(inputs.shape)}"
                )
            pictures.append(inputs)
            kinds.append(target)
            count += len(inputs)
            if count >= 2 * self.options.examples:
                break
        return torch.cat(pictures), torch.cat(kinds).numpy()

    @torch.no_grad()
    def _answers(self, model: nn.Module, batch: Any) -> Array:
        with evaluated(model):
            scores = self.task.forward(model, to_device(batch, device_of(model)))
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise self.refuse(f"it needs a classifier; {type(model).__name__} gives {tuple(scores.shape)}")
        found: Array = scores.argmax(dim=1).cpu().numpy()
        return found


def _add(columns: dict[str, list[Array]], first: Array, second: Array, probe: int) -> None:
    columns["first"].append(first)
    columns["second"].append(second)
    columns["probe"].append(np.full(len(first), probe))


def _of(outcomes: Outcomes, members: Array) -> Floats:
    part = Outcomes({name: outcomes[name][members] for name in ("first", "second", "probe")})
    return Reliance().jackknife(part)


def _one(inputs: Any) -> Tensor:
    """Return the only tensor of the inputs; of several the first, which says how many examples there are."""
    return (
        inputs if isinstance(inputs, Tensor) else next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
    )


def _ring(shape: Any, centre: float) -> Tensor:
    """Return True on the border of a picture, [height, width]."""
    reach = [torch.linspace(-1, 1, side).abs() > centre for side in shape]
    return reach[0][:, None] | reach[1][None, :]


def _smooth(pictures: Tensor) -> Tensor:
    """Return coarse shapes: means over a window of an eighth of the side, three cells at least."""
    side = max(3, pictures.shape[-1] // 8) | 1
    padded = functional.pad(pictures, [side // 2] * 4, mode="replicate")
    return functional.avg_pool2d(padded, side, stride=1)
