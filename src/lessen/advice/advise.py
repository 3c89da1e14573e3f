"""Advice on a model: recipes in the order to try them, each with what it would leave and why.

rules -> recipes -> sketch of each, nothing trained -> exact bytes, multiply-adds, time here -> budget -> order
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lessen.advice.rules import STAGES, Proposal, proposals
from lessen.advice.situation import Situation, situation_of
from lessen.architectures.intake import private_copy
from lessen.costs import LATENCY, MACS, PARAMETERS, RATIO, RESIDENT, STORED
from lessen.errors import ConfigError, LessenError, nearest
from lessen.frontier.gates import Gate, check_units, parse_gates
from lessen.log import SILENT, Log
from lessen.measure import machine as machines
from lessen.measure.latency import pinned_threads
from lessen.measure.machine import Machine
from lessen.measure.memory import resident_bytes
from lessen.measure.record import count_macs, count_parameters
from lessen.measure.sketch import Sketch, bytes_of, sketch
from lessen.measure.work import Work, work_of
from lessen.method import check_needs
from lessen.methods.rebuilt import check_rebuilt
from lessen.methods.replaced import called
from lessen.recipe import Recipe
from lessen.stored.serving import served
from lessen.task import Task
from lessen.train.device import device_of, to_device

FORECAST = (STORED.name, MACS.name, LATENCY.name, RATIO.name, PARAMETERS.name, RESIDENT.name)
"""Costs that a line of a budget may be about; lines on metrics are judged by running."""


@dataclass(frozen=True)
class Line:
    """One recipe to try."""

    recipe: Recipe
    stage: str
    reason: str
    cost: Mapping[str, float]
    """Forecasts by kind of cost; stored bytes are exact, a time is there where the machine was measured."""
    unknown: str = ""
    """Why there is no forecast; empty where `cost` is it."""
    missed: tuple[str, ...] = ()
    """Lines of the budget that the forecast does not hold."""


@dataclass(frozen=True)
class Advice:
    """What to try on a model, in order: what holds the budget, then what nobody can forecast; the rest is left out."""

    situation: Situation
    before: Mapping[str, float]
    """The same costs of the model as it is."""
    lines: tuple[Line, ...]
    over: tuple[Line, ...]
    """Recipes whose forecast misses the budget, the nearest first."""
    unfit: tuple[str, ...] = field(default=())
    """What was proposed and finds nothing to act on."""
    untimed: str = ""
    """Why there are no times; empty where there are."""


def advise(
    model: nn.Module,
    task: Task,
    budget: str | Sequence[str] = (),
    *,
    machine: Machine | None = None,
    threads: int = 1,
    log: Log = SILENT,
) -> Advice:
    """Return what to try on `model`, least risk first; `model` is not changed and nothing is trained.

    Args:
        budget: lines as for a study; those on costs decide what is listed, those on the first metric are for the run.
        machine: the figures of this machine; None takes those that `lessen doctor --measure` left, if any.

    Raises:
        ConfigError: a line on what is neither forecast nor a metric of the task.
        TaskError, InputError: the task cannot call the model.
    """
    gates = _gates(budget, task)
    machine = machine or machines.known(threads)
    copied = private_copy(model)
    called(copied, task)
    check_rebuilt(copied, task)
    situation = situation_of(model, task)
    with pinned_threads(threads):
        clock = _Clock(machine, model, task)
        _check_timed(gates, clock)
        before = _costs(model, model, task, Recipe([]), clock)
        lines: list[tuple[Line, bool]] = []
        known = list(proposals(situation))
        for number, proposal in enumerate(known):
            log.progress("forecasting", number, len(known))
            lines.append(_line(proposal, model, task, clock, gates, before))
        log.progress("forecasting", len(known), len(known))
    fits = [line for line, matches in lines if matches]
    unfit = tuple(dict.fromkeys(line.recipe.name for line, matches in lines if not matches))
    stages = {name: at for at, name in enumerate(STAGES)}
    fits.sort(key=lambda line: (bool(line.unknown), stages[line.stage]))  # within a stage as the rules have it
    over = sorted((line for line in fits if line.missed), key=lambda line: _distance(line, gates, before))
    return Advice(situation, before, tuple(line for line in fits if not line.missed), tuple(over), unfit, clock.why)


def _gates(budget: str | Sequence[str], task: Task) -> tuple[Gate, ...]:
    gates = parse_gates(budget)
    check_units(gates, task.metrics)
    for gate in gates:
        if gate.name in FORECAST:
            if not gate.at_most:
                raise ConfigError(f"budget {gate.text!r}: write the most that you can pay, such as {gate.name}<=0.5x")
        elif gate.name not in task.metrics:
            known = [*FORECAST, *task.metrics]
            raise ConfigError(
                f"budget {gate.text!r}: task {task.name!r} has no metric and no forecast of that name; "
                f"{nearest(gate.name, known)}"
            )
    return gates


def _check_timed(gates: Sequence[Gate], clock: _Clock) -> None:
    """Refuse a line on a time that nobody can forecast here. Raises ConfigError."""
    for gate in gates:
        if gate.name in (LATENCY.name, RATIO.name) and clock.why:
            raise ConfigError(f"budget {gate.text!r}: {clock.why}")


class _Clock:
    """The time of a compact model from that of the model as it is, which is taken once."""

    def __init__(self, machine: Machine | None, model: nn.Module, task: Task) -> None:
        self.machine, self.task, self.why = machine, task, ""
        self.reference, self.work = 0.0, Work({}, 0)
        if machine is None:
            self.why = "this machine was not measured; run `lessen doctor --measure` once"
            return
        found = next(iter(work_of(task, model).values()))
        if missing := machine.unknown(found):
            self.why = f"{missing[0]} is not among what `lessen doctor --measure` times"
            return
        self.work, self.reference = found, _seconds(model, task)

    def seconds(self, compact: nn.Module) -> float | None:
        """Return the seconds of a call of the first workload, or None where an operation was not measured."""
        if self.machine is None or self.why:
            return None
        found: Work = next(iter(work_of(self.task, compact).values()))
        if self.machine.unknown(found):
            return None
        return forecast_seconds(self.machine, found, self.work, self.reference)


def forecast_seconds(machine: Machine, work: Work, before: Work, measured_before: float) -> float:
    """Return the seconds of a compact model from the work of both models, and the time of the reference.

    They are timed in turns, so that each finds the caches with the other's weights in them. What lies between
    operations is taken to stay as it is; where sums are beyond the time, they are scaled to it.
    """
    summed = machine.seconds(work, before.weight_bytes)
    summed_before = machine.seconds(before, work.weight_bytes)
    between = max(0.0, measured_before - summed_before)
    scale = min(1.0, measured_before / summed_before) if summed_before else 1.0
    return summed * scale + between


def _seconds(model: nn.Module, task: Task) -> float:
    """Return the seconds of a call of the first workload, served, as it is now."""
    workload = next(iter(task.workloads(1).values()))
    item = to_device(workload.items[0], device_of(model))
    with served(model), torch.no_grad():
        return machines.timed(lambda: workload.call(model.eval(), item))


def _line(
    proposal: Proposal, model: nn.Module, task: Task, clock: _Clock, gates: Sequence[Gate], before: Mapping[str, float]
) -> tuple[Line, bool]:
    """Return the line of a proposal, and whether it finds anything in the model to act on."""
    recipe = Recipe.parse({"name": _named(proposal), "steps": list(proposal.steps)}, "advice")
    found = _sketched(recipe, model, task)
    try:
        cost = {} if found.model is None else _costs(found.model, model, task, recipe, clock)
    except LessenError as error:  # a form that no artifact can hold, or that the task cannot call
        found, cost = Sketch(None, str(error).partition(";")[0]), {}
    grew = cost.get(STORED.name, 0) >= before[STORED.name] and not _saves_elsewhere(cost, before)
    missed = tuple(gate.text for gate in gates if gate.name in FORECAST and not _holds(gate, cost, before))
    line = Line(recipe, STAGES[proposal.stage], proposal.reason, cost, found.why, missed if cost else ())
    return line, found.matches and not grew


def _named(proposal: Proposal) -> str:
    """Return the steps with the knobs that a rule sets, so that no two lines read alike."""
    words = []
    for step in proposal.steps:
        ((method, knobs),) = step.items()
        said = [f"{knob}={value}" for knob, value in knobs.items() if value is not None and knob != "min_weights"]
        words.append(" ".join([method, *said]))
    return ", ".join(words)


def _saves_elsewhere(cost: Mapping[str, float], before: Mapping[str, float]) -> bool:
    return any(cost[name] < before[name] for name in (MACS.name, LATENCY.name) if name in cost and name in before)


def _sketched(recipe: Recipe, model: nn.Module, task: Task) -> Sketch:
    for step in recipe.steps:
        check_needs(step, task)  # a rule that proposes what the task cannot give is a fault of ours
    return sketch(recipe, model, task)


def _costs(compact: nn.Module, model: nn.Module, task: Task, recipe: Recipe, clock: _Clock) -> dict[str, float]:
    with served(compact):
        macs, resident = count_macs(task, compact), resident_bytes(compact)
    found: dict[str, Any] = {
        STORED.name: bytes_of(compact, model, task, recipe),
        RESIDENT.name: resident,
        PARAMETERS.name: count_parameters(compact),
        MACS.name: macs,
    }
    seconds = clock.reference or None if compact is model else clock.seconds(compact)
    if seconds is not None:
        found |= {LATENCY.name: 1000 * seconds, RATIO.name: seconds / clock.reference}
    return {name: float(value) for name, value in found.items() if value is not None}


def _limit(gate: Gate, before: Mapping[str, float]) -> float:
    return gate.limit * (before.get(gate.name, 1.0) if gate.relative and gate.name != RATIO.name else 1.0)


def _holds(gate: Gate, cost: Mapping[str, float], before: Mapping[str, float]) -> bool:
    return gate.name not in cost or cost[gate.name] <= _limit(gate, before)


def _distance(line: Line, gates: Sequence[Gate], before: Mapping[str, float]) -> float:
    """Return by how much a forecast misses the budget, in units of its limits."""
    shares = [
        line.cost[gate.name] / max(_limit(gate, before), 1e-300) - 1.0 for gate in gates if gate.name in line.cost
    ]
    return sum(max(0.0, share) for share in shares)
