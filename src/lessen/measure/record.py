"""A Measurement: quality with its interval and every cost of one model, each figure measured, none assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.environment import environment
from lessen.errors import TaskError
from lessen.measure.latency import Latency, compare_latency
from lessen.measure.memory import Peak, resident_bytes
from lessen.metrics import Floats, Metric, Outcomes
from lessen.metrics.intervals import crossed_interval, deviation
from lessen.recipe import StepRecord
from lessen.stored.base import StoredModule
from lessen.stored.serving import served
from lessen.task import Judge, Task


@dataclass(frozen=True)
class Quality:
    """Metrics of one model on the test split, with the outcomes they were computed from."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % over test examples, as those of differences are made; NaN where the examples give none."""
    outcomes: Outcomes
    jackknife: dict[str, Floats]
    """Each metric on all units, then without each group of them: what paired differences are judged by."""


@dataclass(frozen=True)
class Cost:
    """What a model costs. None means not measured, and the report says so."""

    stored_bytes: int
    resident_bytes: int
    params: int
    macs: int | None
    """Multiply-adds of one example."""
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_ratio: float | None = None
    latency_ratio_ci: tuple[float, float] | None = None
    throughput_per_s: float | None = None
    peak_rss_bytes: int | None = None
    peak_rss_growth_bytes: int | None = None
    compress_s: float = 0.0
    train_s: float = 0.0
    decoded_bytes: int | None = None
    """Of the memory held: weights of forms that are storage only here, decoded once to be served. None: there are none.
    """


@dataclass(frozen=True)
class Measurement:
    """One line of `measurements.jsonl`: a recipe, a seed, what it gave and what the reference gives."""

    study: str
    task: dict[str, Any]
    recipe: str
    recipe_hash: str
    seed: int
    steps: list[dict[str, Any]]
    quality: dict[str, float]
    quality_ci: dict[str, tuple[float, float]]
    cost: dict[str, Any]
    reference: dict[str, Any]
    """`{"quality": ..., "quality_ci": ..., "cost": ...}` of the uncompressed model of the same seed."""
    data_fingerprint: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each metric is, by the task's name for it: its own name, title, unit and direction."""
    env: dict[str, Any] = field(default_factory=environment)
    difference_sd: dict[str, float] = field(default_factory=dict)
    """Standard deviation over test sets of each metric's difference to the reference, paired: with it the record can be
    judged where its outcomes are not kept."""
    curve: str | None = None
    """Name that the rates of one codec share, so that a report joins them into one line."""
    status: str = "ok"
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the JSON object of the stable file contract."""
        return asdict(self)


def measure_quality(task: Judge, model: nn.Module) -> Quality:
    """Judge `model`, served, on the test split with every metric of the task.

    Raises:
        TaskError: the test split is empty, or a metric is undefined on it (one class only) or reads a column
            that the task does not give.
        NonFiniteError: the model produced NaN or infinity.
    """
    task.check_metrics()
    with served(model):
        outcomes = task.outcomes(model, "test")
    values, intervals, jackknife = {}, {}, {}
    for name, metric in task.metrics.items():
        jackknife[name] = metric.jackknife(outcomes)
        values[name] = float(jackknife[name][0])
        if name == task.primary and not math.isfinite(values[name]):
            raise TaskError(
                f"the metric {name!r} gives {values[name]} for what the model answers: nothing can be judged"
            )
        low, high = crossed_interval(jackknife[name][:, None], metric.resolution(outcomes))
        intervals[name] = (float("nan") if low is None else low, float("nan") if high is None else high)
    return Quality(values, intervals, outcomes, jackknife)


def difference_deviations(
    reference: Mapping[str, Floats], compact: Mapping[str, Floats], metrics: Mapping[str, Metric], outcomes: Outcomes
) -> dict[str, float]:
    """Return the standard deviation over test sets of each metric's paired difference, where there is one.

    Args:
        reference, compact: `Metric.jackknife` by name; outcomes: of either, for what their units resolve.
    """
    found = {}
    for name, metric in metrics.items():
        if name in reference and name in compact:
            sd = deviation(compact[name] - reference[name], metric.resolution(outcomes))
            if sd is not None:
                found[name] = sd
    return found


def measure_cost(
    task: Task, model: nn.Module, *, stored_bytes: int, ledger: Sequence[StepRecord] = (), peak: Peak | None = None
) -> Cost:
    """Return every cost that needs no clock: bytes, parameters and multiply-adds, and the seconds of the ledger.

    Memory is what the model holds while it is served, as it is timed: with weights that no kernel reads decoded.
    """
    train_seconds = sum(step.train_seconds for step in ledger)
    with served(model):
        macs, resident = count_macs(task, model), resident_bytes(model)
    decoded = resident - resident_bytes(model)
    return Cost(
        stored_bytes=stored_bytes,
        resident_bytes=resident,
        params=count_parameters(model),
        macs=macs,
        peak_rss_bytes=peak.peak_rss_bytes if peak else None,
        peak_rss_growth_bytes=peak.growth_bytes if peak else None,
        compress_s=sum(step.seconds for step in ledger) - train_seconds,
        train_s=train_seconds,
        decoded_bytes=decoded or None,
    )


def measure_latency(
    task: Judge,
    reference: nn.Module,
    model: nn.Module,
    *,
    rounds: int = 40,
    threads: int = 1,
    batches: int = 4,
    seconds: float | None = None,
) -> dict[str, Latency]:
    """Time `model` against `reference`, both served, in alternation on each workload of the task, by its name.

    The same model twice gives the noise floor. `seconds` bounds each workload (see `compare_latency`). Raises TaskError
    for a judge without a workload.
    """
    with served(reference, model):
        found = {
            name: compare_latency(
                partial(work.call, reference.eval()),
                partial(work.call, model.eval()),
                work.items,
                rounds=rounds,
                threads=threads,
                batch_examples=work.units,
                seconds=seconds,
            )
            for name, work in task.workloads(batches).items()
        }
    if not found:
        raise TaskError(f"task {task.name!r} has no workload: nothing can be timed")
    return found


def with_latency(cost: Mapping[str, Any], timed: Mapping[str, Latency]) -> dict[str, Any]:
    """Return the cost object with the timing fields filled in: the first workload's, then the others' by name."""
    (first, *others) = timed.items()
    latency = first[1]
    more: dict[str, Any] = {}
    for name, other in others:
        more |= {f"{name}_ms": other.p50_ms, f"{name}_ratio": other.ratio}
        more |= {f"{name}_ratio_ci": (other.ratio_low, other.ratio_high)}
    return {
        **cost,
        "latency_ms_p50": latency.p50_ms,
        "latency_ms_p95": latency.p95_ms,
        "latency_ratio": latency.ratio,
        "latency_ratio_ci": (latency.ratio_low, latency.ratio_high),
        "throughput_per_s": latency.throughput_per_s,
        **more,
    }


def reference_latency(cost: Mapping[str, Any], timed: Mapping[str, Latency]) -> dict[str, Any]:
    """Return the reference's cost object with its own timing fields filled in."""
    (first, *others) = timed.items()
    latency = first[1]
    return {
        **cost,
        "latency_ms_p50": latency.reference_p50_ms,
        "latency_ms_p95": latency.reference_p95_ms,
        "throughput_per_s": latency.batch_examples / latency.reference_p50_ms * 1000.0,
        **{f"{name}_ms": other.reference_p50_ms for name, other in others},
    }


def count_parameters(model: nn.Module) -> int:
    """Return the numbers held by the model: elements of the state, tied ones once, integer codes included."""
    seen = {(tensor.data_ptr(), tensor.numel()): tensor.numel() for tensor in model.state_dict().values()}
    return sum(seen.values())


def count_macs(task: Task, model: nn.Module) -> int | None:
    """Return multiply-adds of one example: torch's flop counter plus what packed modules declare.

    Returns None when the counter cannot run the model.
    """
    batch = task.example_batch()
    opaque: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, StoredModule):
            opaque.append(module.opaque_macs(*inputs))

    handles = [m.register_forward_pre_hook(count) for m in model.modules() if isinstance(m, StoredModule)]
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)
    try:
        with torch.no_grad(), counter:
            task.forward(model, batch)
    except NotImplementedError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    examples = task.units_in(batch)
    if not examples:
        raise TaskError(f"the example batch of task {task.name!r} is empty")
    return (counter.get_total_flops() // 2 + sum(opaque)) // examples


def ledger_records(ledger: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """Return the step ledger as JSON values."""
    return [asdict(step) for step in ledger]
