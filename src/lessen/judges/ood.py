"""The suite `ood`: does the compact model still notice inputs that are none of its business, at the same threshold?

Four scores, higher for inputs like the training data: the softmax's maximum (MSP), energy (Liu et al., arXiv
2010.03759), ODIN (Liang et al., arXiv 1706.02690) and AbeT (LeVine et al., arXiv 2401.12129): log sum exp(c / T) of
cosines c and a learned temperature T in (0, 1], the energy without its leading T. The paper trains head and temperature
with the network; here they are fitted once on the features of the trained, uncompressed model, and the compact model's
features are read by the same head, as a served pipeline would. Thresholds reject 5 % of validation inputs: the one that
is carried over from the uncompressed model, and one set anew on the compact model's own scores.

Outside inputs are made from the data: noise of the same mean and spread, permuted (the features of an
example dealt anew) and, for ids, shuffled (a column dealt to other rows); or they come from another task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.judges.reading import entering, evaluated, few, head_of
from lessen.judges.suite import CannotAnswer, Section, Suite, SuiteOptions, share, spoken, table
from lessen.metrics import AUC, Floats, Metric, Outcomes
from lessen.metrics.exact import exact_interval, paired_p
from lessen.metrics.intervals import Z, crossed_interval
from lessen.metrics.many import student_quantile
from lessen.task import Split
from lessen.tasks import get_task
from lessen.train.device import device_of, to_device

DETECTORS = ("msp", "energy", "odin", "abet")
INSIDE, KEPT, OUTSIDE = 1, 2, 0
"""Parts of the units: test inputs, validation inputs for thresholds, inputs from outside."""
TARGET = 0.95


def msp(logits: Tensor) -> Tensor:
    """Return the largest softmax chance of each row, [n, classes] to [n]."""
    return logits.softmax(dim=1).amax(dim=1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T log sum exp(z / T): the negative energy, higher inside."""
    return temperature * torch.logsumexp(logits / temperature, dim=1)


def abet(cosines: Tensor, temperature: Tensor) -> Tensor:
    """Return log sum exp(c / T), without the leading T; by logsumexp, which the published code's float64 sum lacks."""
    return torch.logsumexp(cosines / temperature[:, None], dim=1)


class LearnedTemperature(nn.Module):
    """A cosine head with a temperature of its own for each input: features [n, width] to cosines and T in (0, 1]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.kaiming_normal_(self.weight)
        self.heat = nn.Linear(width, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines [n, classes] and temperatures [n]."""
        rows = features / (features.norm(dim=1, keepdim=True) + 1e-4)
        columns = self.weight / (self.weight.norm(dim=1, keepdim=True) + 1e-4)
        heat = torch.sigmoid(self.norm(self.heat(features)))[:, 0] + 1e-12
        return rows @ columns.t(), heat

    @classmethod
    def fitted(cls, features: Tensor, target: Tensor, classes: int, steps: int, seed: int) -> LearnedTemperature:
        """Return the head that tells the classes apart by the cross-entropy of c / T; draws leave torch's own alone."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            head = cls(features.shape[1], classes)
            # the temperature is not decayed: it would end at the constant 1/2
            groups: list[dict[str, Any]] = [
                {"params": [head.weight], "weight_decay": 1e-4},
                {"params": [*head.heat.parameters(), *head.norm.parameters()]},
            ]
            optimizer = torch.optim.Adam(groups, lr=1e-2)
            for _ in range(steps):
                rows = torch.randint(len(features), (min(256, len(features)),))
                cosines, heat = head(features[rows])
                loss = functional.cross_entropy(cosines / heat[:, None], target[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return head.eval()


def odin(score: Callable[[Any], Tensor], inputs: Tensor, temperature: float, step: float) -> Tensor:
    """Return the largest softmax chance at `temperature` of inputs moved one step towards their own answer, [n].

    The inputs are left where they are if the model gives no gradient (integer kernels).
    """
    moved = inputs
    with torch.enable_grad():
        moving = inputs.detach().clone().requires_grad_()
        logits = score(moving) / temperature
        if logits.requires_grad:
            loss = functional.cross_entropy(logits, logits.argmax(dim=1))
            gradient = torch.autograd.grad(loss, moving, allow_unused=True)[0]
            moved = inputs if gradient is None else inputs - step * gradient.sign()
    return (score(moved) / temperature).softmax(dim=1).amax(dim=1).detach()


class OodOptions(SuiteOptions):
    """What a user may say of inputs from outside."""

    outside: str | dict[str, Any] | None = Field(
        None, description="task whose test inputs are outside; None: made ones"
    )
    examples: int = Field(1000, ge=50, le=10**6, description="inputs of each part")
    temperature: float = Field(1000.0, gt=0, description="of ODIN")
    step: float = Field(0.0014, ge=0, description="of ODIN, in units of the inputs")
    fit: int = Field(300, ge=1, le=10**6, description="steps that fit AbeT's head")
    seed: int = Field(0, ge=0, le=2**31, description="of made inputs and of the head")


class Detection(Metric):
    """Chance that an input from inside scores higher than one from outside."""

    def __init__(self, detector: str) -> None:
        self.detector, self.name, self.title, self.reads = (
            detector,
            f"auroc-{detector}",
            f"AUROC of {detector}",
            (detector, "part"),
        )

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for all data
        """Return 0.5: one score for all."""
        return 0.5

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return it under each weighting; validation inputs count nothing."""
        used = outcomes["part"] != KEPT
        return AUC.weighted(self.pair(outcomes), weights[:, used])

    def pair(self, outcomes: Outcomes) -> Outcomes:
        """Return scores and labels of the inputs from inside and outside."""
        used = outcomes["part"] != KEPT
        return Outcomes(
            {"score": outcomes[self.detector][used], "target": (outcomes["part"][used] == INSIDE).astype(np.float64)}
        )


class Ood(Suite):
    """Detection of inputs from outside by four scores, at the carried-over threshold and at one set anew."""

    name, question = "ood", "Does it still notice inputs that are none of its business?"
    metrics: Mapping[str, Metric] = {name: Detection(name) for name in DETECTORS}
    Options = OodOptions

    def __init__(self, options: Any = None, task: Any = None) -> None:
        super().__init__(options, task)
        self._head: tuple[str, LearnedTemperature] | None = None
        self._headless = ""

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return four scores of each input and its part. The first model judged is the one that the head is fitted on.

        Raises:
            CannotAnswer: the model gives no row of scores an example, or inputs of a kind that nothing is made from.
        """
        fitted = self._fitted(model)
        parts = [(INSIDE, self._inputs(split)), (KEPT, self._inputs("validation")), (OUTSIDE, self._outside(split))]
        found: dict[str, list[Any]] = {name: [] for name in (*(DETECTORS if fitted else DETECTORS[:-1]), "part")}
        for part, calls in parts:
            for inputs, target in calls:
                scores = self._scores(model, fitted, inputs, target)
                for name, values in scores.items():
                    found[name].append(values.double().cpu().numpy())
                found["part"].append(np.full(len(target), part))
        joined = {name: np.concatenate(values) for name, values in found.items()}
        return Outcomes(joined, given=frozenset({"part"}))

    def _fitted(self, model: nn.Module) -> tuple[str, LearnedTemperature] | None:
        """Return AbeT's head and the layer whose features it reads, or None: no single layer gives the scores."""
        if self._head is None and not self._headless:
            try:
                path = head_of(model, self.task, self.name)
            except CannotAnswer as error:
                self._headless = str(error)
                return None
            calls = few(self.task, "train", 4 * self.options.examples)
            features = entering(model, [path], calls, self.task.forward, self.name)[path]
            target = torch.cat([self.task.target(call) for call in calls]).long()
            with torch.no_grad():
                classes = self.task.forward(model, to_device(calls[0], device_of(model))).shape[1]
            self._head = path, LearnedTemperature.fitted(features, target, classes, self.options.fit, self.options.seed)
        return self._head

    def _inputs(self, split: Split) -> list[tuple[Any, Tensor]]:
        return [
            (self.task.inputs(call), self.task.target(call)) for call in few(self.task, split, self.options.examples)
        ]

    def _outside(self, split: Split) -> Iterator[tuple[Any, Tensor]]:
        if self.options.outside is not None:
            other = get_task(self.options.outside, f"judge {self.name}: outside", own=True)
            for call in few(other, split, self.options.examples):
                yield other.inputs(call), other.target(call)
            return
        generator = torch.Generator().manual_seed(self.options.seed)
        for number, (inputs, target) in enumerate(self._inputs(split)):
            yield _made(inputs, number % 2 == 0, generator, self), target

    @torch.no_grad()
    def _scores(
        self, model: nn.Module, fitted: tuple[str, LearnedTemperature] | None, inputs: Any, target: Tensor
    ) -> dict[str, Tensor]:
        batch, moving = (inputs, target), _floats(inputs)

        def score(value: Any) -> Tensor:
            return self._rows(self.task.forward(model, (_with(inputs, value), target)), model)

        with evaluated(model):
            logits = score(moving)
            tempered = (logits / self.options.temperature).softmax(dim=1).amax(dim=1)
            given = None if moving is None else to_device(moving, device_of(model))
            found = tempered if given is None else odin(score, given, self.options.temperature, self.options.step)
        scores = logits.double()
        every = {"msp": msp(scores), "energy": energy(scores), "odin": found}
        if fitted is not None:
            path, head = fitted
            cosines, heat = head(entering(model, [path], [batch], self.task.forward, self.name)[path])
            every["abet"] = abet(cosines.double(), heat.double())
        return every

    def _rows(self, output: Tensor, model: nn.Module) -> Tensor:
        """Return one score a class, [n, classes]; one logit of a yes stands beside 0 for the no."""
        if output.numel() == len(output):
            return functional.pad(output.float().reshape(-1, 1), (1, 0))
        if output.ndim != 2:
            raise self.refuse(
                f"it needs one row of scores an example; {type(model).__name__} gives {tuple(output.shape)}"
            )
        return output.float()

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return AUROC and what both thresholds let through; caught is a proved loss, or a threshold that moved."""
        before.check_same_units(after)
        ranks, cuts, caught, figures = [], [], [], {}
        part = before["part"]
        for name in (each for each in DETECTORS if each in before.columns):
            told, said = _auroc(name, before, after)
            passed, moved = _passed(name, before, after)
            figures[name] = {**told, **passed}
            ranks.append((name, f"{told['before']:.4f}", f"{told['after']:.4f}", said))
            cuts.append((name, *(share(each) for each in passed.values())))
            if told["high"] is not None and told["high"] < 0:
                caught.append(f"{name} tells outside from inside less well: AUROC {said}")
            if moved:
                caught.append(
                    f"the carried-over threshold of {name} passes {moved} of the inputs from inside: set it anew"
                )
        counts = [int((part == each).sum()) for each in (INSIDE, OUTSIDE, KEPT)]
        lines = (
            f"{counts[0]} inputs from inside, {counts[1]} from outside; thresholds pass {share(TARGET)} of {counts[2]} "
            "validation inputs. AbeT's head is fitted on the uncompressed model.",
            *([f"No AbeT: {self._headless}."] if self._headless else []),
        )
        tables = (
            table("AUROC", ("score", "uncompressed", "compact", "difference [95 %, for all scores at once]"), ranks),
            table("Inputs that pass the threshold", ("score", *PASSED), cuts),
        )
        return Section(self.name, self.question, tuple(caught), lines, tables, figures)


def _auroc(name: str, before: Outcomes, after: Outcomes) -> tuple[dict[str, Any], str]:
    """Return the AUROC of both models and the paired interval of the difference, wide enough for all scores."""
    metric = Detection(name)
    one, two = (AUC.jackknife(metric.pair(each)) for each in (before, after))
    low, high = crossed_interval((two - one)[:, None], AUC.resolution(metric.pair(before)))
    value, wider = float(two[0] - one[0]), student_quantile(1.0 - 0.025 / len(DETECTORS), 1e6) / Z
    ends = [None if end is None else value + wider * (end - value) for end in (low, high)]
    told = {"before": float(one[0]), "after": float(two[0]), "low": ends[0], "high": ends[1]}
    return told, spoken(value, ends[0], ends[1])


PASSED = (
    "uncompressed: inside", "outside", "carried over: inside", "outside ", "set anew: inside", "outside  ",
)  # fmt: skip
"""Headings of what passes; no two are one string."""


def _passed(name: str, before: Outcomes, after: Outcomes) -> tuple[dict[str, float], str]:
    """Return the shares that pass at each threshold, and where the carried-over one moved, its share in words."""
    part = before["part"]
    cuts = [np.quantile(each[name][part == KEPT], 1.0 - TARGET) for each in (before, after)]
    passed = {
        "first": before[name] >= cuts[0],
        "carried": after[name] >= cuts[0],
        "anew": after[name] >= cuts[1],
    }
    inside, outside = part == INSIDE, part == OUTSIDE
    shares = {
        f"{what} {where}": float(each[members].mean())
        for what, each in passed.items()
        for where, members in (("inside", inside), ("outside", outside))
    }
    first, carried = passed["first"][inside], passed["carried"][inside]
    lost, gained = int((first & ~carried).sum()), int((~first & carried).sum())
    if paired_p(lost, gained) >= 0.05 / len(DETECTORS):
        return shares, ""
    ends = exact_interval(int(carried.sum()), len(carried))
    return shares, f"{share(float(carried.mean()), *ends)} in place of {share(float(first.mean()))}"


def _floats(inputs: Any) -> Tensor | None:
    """Return the one float tensor of the inputs, if they hold one that can be moved."""
    if isinstance(inputs, Tensor):
        return inputs if inputs.is_floating_point() else None
    if isinstance(inputs, Mapping):
        found = [value for value in inputs.values() if isinstance(value, Tensor) and value.is_floating_point()]
        return found[0] if len(found) == 1 and len(inputs) == 1 else None
    return None


def _with(inputs: Any, value: Tensor | None) -> Any:
    """Return the inputs with their one float tensor replaced."""
    if value is None:
        return inputs
    return dict.fromkeys(inputs, value) if isinstance(inputs, Mapping) else value


def _made(inputs: Any, noise: bool, generator: torch.Generator, suite: Suite) -> Any:
    """Return inputs from outside of the shape of `inputs`: noise, dealt anew by example, or columns of ids shuffled."""
    if isinstance(inputs, Tensor):
        return _made_tensor(inputs, noise, generator)
    if isinstance(inputs, Mapping):
        return {
            name: value if "mask" in name else _made_tensor(value, noise, generator) for name, value in inputs.items()
        }
    if isinstance(inputs, tuple) and all(isinstance(value, Tensor) for value in inputs):
        return tuple(_made_tensor(value, noise, generator) for value in inputs)
    raise suite.refuse(f"nothing can be made from inputs of type {type(inputs).__name__}; name a task with outside=")


def _made_tensor(values: Tensor, noise: bool, generator: torch.Generator) -> Tensor:
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    if values.is_floating_point() and noise:
        drawn = torch.randn(flat.shape, generator=generator)
        return (flat.mean() + flat.std() * drawn).to(values.dtype).reshape(values.shape)
    if values.is_floating_point() and flat.shape[1] > 1:
        order = torch.rand(flat.shape, generator=generator).argsort(dim=1)
        return flat.gather(1, order).reshape(values.shape)
    order = torch.rand(flat.shape, generator=generator).argsort(dim=0)
    return flat.gather(0, order).reshape(values.shape)
