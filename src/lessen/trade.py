"""The two calls most people need: compress a model, or compare two, and get the whole trade in one table.

trade = lessen.compress(model, task, {"emb-rowwise-quant": {"bits": 4}}, margin=0.003)
print(trade)
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen import files
from lessen.architectures.intake import private_copy
from lessen.artifact import folder as artifact
from lessen.artifact import probe as probes
from lessen.artifact.delta import base_of
from lessen.artifact.layout import BaseReference
from lessen.costs import DECODED, CostKind, cost_kinds
from lessen.errors import MAX_SEED, ArtifactError, ConfigError, InputError
from lessen.frontier.margin import check_margin
from lessen.frontier.verdict import Difference, Judgement, judge, no_better_than_chance, paired_difference
from lessen.log import SILENT, Log
from lessen.measure.latency import check_threads
from lessen.measure.record import (
    Cost,
    Measurement,
    Quality,
    difference_deviations,
    ledger_records,
    measure_cost,
    measure_latency,
    measure_quality,
    reference_latency,
    with_latency,
)
from lessen.method import Method
from lessen.methods.rebuilt import check_rebuilt
from lessen.methods.replaced import called
from lessen.metrics import describe_metrics, standards
from lessen.recipe import Recipe, StepRecord
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device

Steps = Recipe | Method | str | Mapping[str, Any] | Sequence[Method | str | Mapping[str, Any]]

WIDTH = 22
TIMING_SECONDS = 30.0
"""After so many no further pair of calls is timed, a workload; a study says its rounds and gets them."""
"""Of the first column of the table."""


@dataclass(frozen=True)
class Trade:
    """A compact model, what it costs and how good it is beside the model it came from.

    The model is a private copy; `print(trade)` shows the table, `trade.save(path)` writes an artifact.
    """

    model: nn.Module
    base: nn.Module
    task: Task
    recipe: Recipe
    measurement: Measurement
    differences: dict[str, Difference]
    """Compact minus reference for each metric, with a paired 95 % interval."""
    judgement: Judgement
    margin: float

    @property
    def verdict(self) -> str:
        """`better`, `within margin`, `worse` or `not enough data to say`."""
        return self.judgement.verdict

    def save(self, path: Path | str, *, delta: bool = False) -> int:
        """Write an artifact to the new directory `path` and return its stored bytes.

        Args:
            delta: name the tensors that equal the uncompressed model's bit for bit instead of storing them again; to
                load it, that model must be at hand.

        Raises:
            OutputError: the directory exists and is not empty, or cannot be written.
            ArtifactError: what is read back gives other outputs than the model that was measured; nothing is kept.
        """
        new = not Path(path).exists()
        stored = artifact.save(
            path,
            self.model,
            self.base,
            reference=self._reference() if delta or self.recipe.keeps_base else None,
            task=self.task.describe() if self.task.Options else None,
            probe=probes.inputs_for(self.task, self.model),
            given={
                name: artifact.GivenFile("tokenizer", file, counted=False)
                for name, file in self.task.companions().items()
            },
            extra={
                "recipe.yaml": files.dump_yaml(self.recipe.describe()),
                "measurement.json": files.dump_json(self.measurement.record()),
                "card.md": self.card(),
            },
        )
        try:
            self._check_kept(path)
        except ArtifactError:
            shutil.rmtree(path)
            if not new:
                Path(path).mkdir()
            raise
        return stored

    def _check_kept(self, path: Path | str) -> None:
        """Compare what lies on disk with the model that was measured, called as the task calls it."""
        work = self.task.workloads(1).get("forward")
        if work is None:
            return
        device = device_of(self.model)
        kept, batch = artifact.load(path, model=self.base).to(device), to_device(work.items[0], device)
        with torch.no_grad():
            found, measured = (main_tensor(work.call(one, batch), one) for one in (kept, self.model))
        probes.compared(found, measured, f"{path}, read back", torch.__version__)

    def _reference(self) -> BaseReference:
        """Return how the uncompressed model is found again: by its task, if it is the one that comes with it."""
        own = base_of(self.base)
        if self.task.pretrained and self.task.Options and base_of(self.task.reference()).digest == own.digest:
            return own.model_copy(update={"kind": "task"})
        return own

    def __str__(self) -> str:
        """Return the trade table: before, after, and the ratio or the difference with its interval."""
        before, after = self.measurement.reference["cost"], self.measurement.cost
        lines = [f"{'':{WIDTH}}{'before':>14}{'after':>14}   change"]
        for kind in cost_kinds(after):
            more = not kind.core and kind.relative and isinstance(after.get(kind.name), (int, float))
            if kind.trade or more:
                lines.append(_cost_row(kind, before.get(kind.name), after))
        decoded = after.get(DECODED.name)
        if decoded:
            lines.append(f"storage only: {decoded:,} of the bytes held are weights without a kernel here, decoded once")
        for name, difference in self.differences.items():
            start = self.measurement.reference["quality"][name]
            lines.append(
                f"{name:{WIDTH}}{start:>14.4f}{self.measurement.quality[name]:>14.4f}   {difference.value:+.4f} "
                f"[{_signed(difference.low)}, {_signed(difference.high)}]"
            )
        lines.append(f"{self.task.primary}: {self.judgement.verdict} - {self.judgement.reason}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def card(self) -> str:
        """Return the model card: the trade, the steps, and how to load it."""
        steps = "\n".join(
            f"- `{name}` {knobs}" for step in self.recipe.describe()["steps"] for name, knobs in step.items()
        )
        argument = "" if self.task.Options else ", model=YourModel()"
        return (
            f"# {self.recipe.name} on {self.task.name}\n\n```text\n{self}\n```\n\n"
            f"## Steps\n\n{steps or '- none: the uncompressed model'}\n\n"
            f"## Load\n\n```python\nimport lessen\n\nmodel = lessen.load(path{argument})\n```\n\n"
            f"Test examples: {self._examples()}. Timings: {self._machine()}.\n"
        )

    def _examples(self) -> int | None:
        return self.differences[self.task.primary].examples

    def _machine(self) -> str:
        env = self.measurement.env
        return f"{env['processor']}, {env['threads']} thread(s), torch {env['packages'].get('torch')}"


def compress(
    model: nn.Module, task: Task, steps: Steps, *, margin: float, seed: int = 0, threads: int = 1, log: Log = SILENT
) -> Trade:
    """Apply methods to a copy of `model`, measure both on `task`, and judge the loss of quality against `margin`.

    Args:
        steps: a recipe, a method, a method's name, `{name: {knob: value}}`, or a list of the latter three.
        margin: largest loss of the task's first metric that you accept, in that metric's unit.
        threads: torch threads while timing.

    Raises:
        ConfigError: an unknown method or knob, a margin that is not positive, or a seed or threads out of range.
        InputError: no model, no task, or a task that cannot call the model on its first test batch.
        ArtifactError: inputs of the model that no artifact can record.
        NothingMatchedError, NonFiniteError, TaskError: see `Recipe.apply` and `measure_quality`.
    """
    recipe, margin = as_recipe(steps), check_margin(margin)
    check_given(model, task, seed, threads)
    task.check_metrics()
    copied = private_copy(model)
    called(copied, task)
    check_rebuilt(copied, task)
    probes.inputs_for(task, copied)
    del copied
    small, ledger = recipe.apply(model, task, seed=seed, log=log)
    return compare(model, small, task, margin=margin, recipe=recipe, ledger=ledger, seed=seed, threads=threads, log=log)


def compare(
    reference: nn.Module,
    compact: nn.Module,
    task: Task,
    *,
    margin: float,
    recipe: Recipe | None = None,
    ledger: Sequence[StepRecord] = (),
    seed: int = 0,
    threads: int = 1,
    log: Log = SILENT,
) -> Trade:
    """Measure two models on one task, timed in alternation and judged on the same examples; neither is changed.

    Slow calls are timed for half a minute a workload, fast ones 40 times each.
    """
    margin = check_margin(margin)
    for one in (reference, compact):
        check_given(one, task, seed, threads)
    base, small = private_copy(reference), private_copy(compact)
    if recipe is None:
        for one in (base, small):
            called(one, task)
    stages = "judging and timing both models"
    log.progress(stages, 0, 3)
    before = measure_quality(task, base)
    log.progress(stages, 1, 3)
    after = measure_quality(task, small)
    log.progress(stages, 2, 3)
    differences, judgement = _judged(task, before, after, margin)
    latency = measure_latency(task, base, small, threads=threads, seconds=TIMING_SECONDS)
    log.progress(stages, 3, 3)
    recipe = recipe or Recipe([], name="given")
    named = base_of(base) if recipe.keeps_base else None
    costs = {
        "reference": reference_latency({**asdict(_cost(task, base, base)), **task.costs(before.outcomes)}, latency),
        "compact": with_latency(
            {**asdict(_cost(task, small, base, ledger, named)), **task.costs(after.outcomes)}, latency
        ),
    }
    measurement = Measurement(
        study="",
        task=task.describe(),
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        seed=seed,
        steps=ledger_records(ledger),
        quality=after.values,
        quality_ci=after.intervals,
        cost=costs["compact"],
        reference={"quality": before.values, "quality_ci": before.intervals, "cost": costs["reference"]},
        data_fingerprint=task.fingerprint(),
        metrics=describe_metrics(task.metrics),
        difference_sd=difference_deviations(before.jackknife, after.jackknife, task.metrics, before.outcomes),
    )
    return Trade(small, base, task, recipe, measurement, differences, judgement, margin)


def as_recipe(steps: Steps) -> Recipe:
    """Build a recipe from any of the forms that `compress` accepts. Raises ConfigError."""
    if isinstance(steps, Recipe):
        return steps
    items = [steps] if isinstance(steps, (Method, str, Mapping)) else list(steps)
    parsed = [
        item if isinstance(item, Method) else Recipe.parse({"steps": [item]}, own=True).steps[0] for item in items
    ]
    return Recipe(parsed)


def check_given(model: Any, task: Any, seed: Any, threads: Any) -> None:
    """Refuse what is no model or no task, and numbers that torch does not take.

    Raises:
        InputError: which argument, what it is, what it may be.
    """
    for name, value, kind in (("model", model, nn.Module), ("task", task, Task)):
        if not isinstance(value, kind):
            found = f"the class {value.__name__}; make one: {value.__name__}()" if isinstance(value, type) else value
            raise InputError(f"the {name} must be a {kind.__module__}.{kind.__name__}, and is {found!s:.100}")
    check_threads(threads)
    if type(seed) is not int or abs(seed) > MAX_SEED:
        raise ConfigError(f"seed = {seed!s:.40} is not accepted: give a whole number up to {MAX_SEED}")


def _judged(task: Task, before: Quality, after: Quality, margin: float) -> tuple[dict[str, Difference], Judgement]:
    before.outcomes.check_same_units(after.outcomes)
    known, differences, doubt = standards(task.metrics, before.outcomes), {}, ""
    for name, metric in task.metrics.items():
        base, up, smallest = {0: before.jackknife[name]}, metric.higher_is_better, _smallest(known[name])
        differences[name] = paired_difference(base, {0: after.jackknife[name]}, len(before.outcomes), up, smallest)
        if name == task.primary and no_better_than_chance(known[name]["chance"], base, up):
            doubt = f"the uncompressed model is no better than chance ({name} {before.values[name]:.4f})"
    return differences, judge(differences[task.primary], margin, _smallest(known[task.primary]), doubt)


def _smallest(known: Mapping[str, float | None]) -> float:
    return float("inf") if known["resolution"] is None else known["resolution"]


def _cost(
    task: Task, model: nn.Module, base: nn.Module, ledger: Sequence[StepRecord] = (), named: BaseReference | None = None
) -> Cost:
    described = task.describe() if task.Options else None
    stored = artifact.stored_size(model, base, described, named)
    return measure_cost(task, model, stored_bytes=stored, ledger=ledger)


def _cost_row(kind: CostKind, before: float | None, cost: Mapping[str, Any]) -> str:
    """Return the row of one cost; of a timing the ratio that was measured in turns, whose interval stands beside it."""
    label, after = kind.title + (f" ({kind.unit})" if kind.unit in ("ms", "s") else ""), cost.get(kind.name)
    if before is None or after is None:
        return f"{label:{WIDTH}}{'not measured':>28}"
    paired, ends = cost.get(kind.paired), cost.get(f"{kind.paired}_ci")
    share = paired if paired is not None else after / before if before else None
    ratio = "-" if share is None else f"{share:.3f}x"
    if paired is not None and ends:
        ratio += f" [{ends[0]:.3f}, {ends[1]:.3f}]"
    form = "{:,.0f}" if kind.unit in ("B", "") else "{:.3f}"
    return f"{label:{WIDTH}}{form.format(before):>14}{form.format(after):>14}   {ratio}"


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.4f}"
