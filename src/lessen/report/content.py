"""What a report says, before it is laid out: the same strings feed the page and its Markdown twin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from lessen.costs import MACS, PEAK, RATIO, RESIDENT, STORED, cost_kinds
from lessen.frontier import Frontier, Point
from lessen.frontier.records import StudyRecords, interval, number
from lessen.frontier.verdict import KEPT, UNKNOWN
from lessen.report import wording

EXPECTED = (STORED, RESIDENT, MACS, RATIO, PEAK)
"""What a reader will look for, and is told where it was not measured."""
WIDE = 0.1
"""An A/A run whose latency ratio may lie further from 1 than this says that the machine was not quiet."""


def trade_rows(frontier: Frontier) -> list[dict[str, Any]]:
    """Return one row a recipe: for quality and each cost the figure before, after and the difference."""
    on_front = {point.label for point in frontier.front(frontier.cost)}
    return [_trade_row(frontier, point, point.label in on_front) for point in frontier]


def _trade_row(frontier: Frontier, point: Point, on_front: bool) -> dict[str, Any]:
    name, decimals = frontier.primary, wording.decimals_for(frontier.margin)
    return {
        "label": point.label,
        "verdict": "failed" if point.failed else point.verdict,
        "reason": "; ".join(dict.fromkeys(point.errors.values())) if point.failed else point.judgement.reason,
        "front": on_front,
        "seeds": len(point.seeds),
        "families": ", ".join(point.families),
        "before": wording.with_spread(point.reference_quality.get(name), decimals),
        "after": wording.with_spread(point.quality.get(name), decimals),
        "difference": wording.difference(point.difference.get(name), decimals),
        "costs": {
            cost: {
                "before": wording.amount(cost, _mean(point.reference_cost, cost)),
                "after": wording.amount(cost, _mean(point.cost, cost)),
                "share": wording.share(_mean(point.share, cost)),
            }
            for cost in (kind.name for kind in cost_kinds(kind.name for kind in frontier.costs))
        },
        "latency": wording.latency(point),
        "flags": list(point.flags),
        "gates": dict(point.gates),
    }


def undecided(frontier: Frontier) -> list[tuple[str, str]]:
    """Return why there is no verdict: the recipes, and the reason that they share."""
    reasons: dict[str, list[str]] = {}
    for point in frontier.measured:
        if point.verdict == UNKNOWN:
            reasons.setdefault(point.judgement.reason, []).append(point.label)
    return [(_some(labels), reason) for reason, labels in reasons.items()]


def ledger_rows(frontier: Frontier) -> list[dict[str, str]]:
    """Return one row a step: what it was told, what it did to the bytes, how long it took, what it found."""
    rows = []
    for point in frontier:
        for position, step in enumerate(point.steps, 1):
            before, after = number(step.get("bytes_before")), number(step.get("bytes_after"))
            rows.append(
                {
                    "label": point.label,
                    "step": str(position),
                    "method": str(step.get("method", "?")),
                    "knobs": _pairs(step.get("knobs")),
                    "before": wording.amount("stored_bytes", before),
                    "after": wording.amount("stored_bytes", after),
                    "seconds": wording.amount("compress_s", number(step.get("seconds"))),
                    "training": wording.amount("train_s", number(step.get("train_seconds"))),
                    "findings": _pairs(step.get("findings")),
                }
            )
    return rows


def gaps(frontier: Frontier) -> list[str]:
    """Return what was not measured, and what a reader must not conclude."""
    found = [note for study in frontier.studies for note in study.notes]
    for kind in EXPECTED:
        missing = [point.label for point in frontier.measured if kind.name not in point.cost]
        if missing and len(missing) == len(frontier.measured):
            found.append(f"{kind.title.capitalize()} was not measured.")
        elif missing:
            found.append(f"{kind.title.capitalize()} was not measured for {_some(missing)}.")
    sizes = {
        point.study: round(found_mean)
        for point in frontier.measured
        if (found_mean := _mean(point.reference_cost, "stored_bytes"))
    }
    if len(set(sizes.values())) > 1:
        found.append("The studies have different uncompressed models; each recipe is compared with its own.")
    single = [point.label for point in frontier.measured if len(point.seeds) == 1]
    if single:
        found.append(f"One seed only, so the spread from seed to seed is unknown: {_some(single)}.")
    found += [line for point in frontier for line in _failures(point)]
    if not any(study.noise for study in frontier.studies):
        found.append("No A/A run of the uncompressed model was made: the noise of the timings is unknown.")
    found += [line for study in frontier.studies for line in _noisy(study, frontier)]
    if not any(study.baselines for study in frontier.studies):
        found.append("No simpler model was run beside the reference: what the reference itself is worth is unknown.")
    if any("latency_ratio" in point.cost for point in frontier.measured):
        found.append(f"Latency holds for this machine only ({_machine(frontier)}); no other was timed.")
    return list(dict.fromkeys(found))


def noise_rows(frontier: Frontier) -> list[tuple[str, str]]:
    """Return what an A/A run of the uncompressed model moved, and how far reference seeds lie apart."""
    decimals = wording.decimals_for(frontier.margin)
    rows: list[tuple[str, str]] = []
    for study in frontier.studies:
        prefix = f"{study.name}: " if len(frontier.studies) > 1 else ""
        ratio, ends = number(study.noise.get("latency_ratio")), interval(study.noise.get("latency_ratio_ci"))
        if ratio is not None and ends:
            rows.append((f"{prefix}latency ratio, A/A", f"{ratio:.3f}× [{ends[0]:.3f}, {ends[1]:.3f}]"))
        for name, value in (study.noise.get("quality") or {}).items():
            if pair := interval(value):
                rows.append((f"{prefix}{frontier.title(name)}, A/A", wording.between(*pair, decimals)))
    for point in frontier.measured[:1]:
        for name, estimate in point.reference_quality.items():
            if estimate.spread is not None:
                text = f"± {estimate.spread:.{decimals}f} (standard deviation, {len(estimate.values)} seeds)"
                rows.append((f"reference {frontier.title(name)}, seed to seed", text))
    return rows


def baseline_rows(frontier: Frontier) -> tuple[list[str], list[list[str]]]:
    """Return metric names and one row a model: the reference first, then the simpler models run beside it."""
    decimals = wording.decimals_for(frontier.margin)
    metrics = list(dict.fromkeys(name for point in frontier.measured for name in point.reference_quality))
    rows: list[list[str]] = []
    for point in frontier.measured[:1]:
        cells = [wording.with_spread(point.reference_quality.get(name), decimals) for name in metrics]
        rows.append(["reference, uncompressed", *cells])
    for study in frontier.studies:
        for name, values in study.baselines.items():
            if isinstance(values, Mapping):
                rows.append([str(name), *(_baseline_cell(values, metric, decimals) for metric in metrics)])
    return [frontier.title(name) for name in metrics], rows


def environment_rows(frontier: Frontier) -> list[tuple[str, str]]:
    """Return machine and versions; where records differ, every value found."""
    values: dict[str, dict[str, None]] = {}
    for study in frontier.studies:
        for record in study.records:
            env = record.get("env") or {}
            for key, value in flat(env if isinstance(env, Mapping) else {}):
                values.setdefault(key, {})[value] = None
    rows = [(key, " | ".join(found)) for key, found in values.items()]
    rows += [("task", study.task_name) for study in frontier.studies[:1]]
    rows += [("test data", f"SHA-256 {study.fingerprint[:16]}") for study in frontier.studies[:1]]
    return rows


class _Quoting(yaml.SafeDumper):
    """Quotes text with a `<`, which is then written as an escape: no reader can take a name for markup."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "<" in text else None)
)


def recipes_yaml(frontier: Frontier) -> str:
    """Return every recipe in the form a study file takes."""
    recipes = [
        {"name": point.recipe, "steps": [{str(s.get("method")): dict(s.get("knobs") or {})} for s in point.steps]}
        for point in frontier
    ]
    text = yaml.dump({"recipes": recipes}, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=110)
    return str(text).replace("<", "\\x3c")


def summary(frontier: Frontier) -> str:
    """Return the second sentence: how many recipes met which end, on how much data."""
    parts = [f"{count} {verdict}" for verdict, count in wording.tally(frontier) if count]
    examples = [d.examples for p in frontier.measured for d in p.difference.values() if d.examples]
    seeds = sorted({len(point.seeds) for point in frontier.measured})
    base = f"{len(frontier)} recipes: " + ", ".join(parts)
    if seeds:
        base += f". {seeds[0] if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'} seed{'s' * (seeds[-1] > 1)}"
        base += f", {max(examples):,} test examples" if examples else ""
    return base + "; intervals are 95 %, paired with the uncompressed model of the same seed."


def accepted(point: Point) -> bool:
    """Return True when a recipe is within the margin, or better, and holds every gate."""
    return point.verdict in KEPT and all(point.gates.values())


def _baseline_cell(values: Mapping[str, Any], metric: str, decimals: int) -> str:
    value, ends = number(values.get(metric)), interval(values.get(f"{metric}_ci"))
    if value is None:
        return wording.NONE
    return f"{value:.{decimals}f}" + (f" [{ends[0]:.{decimals}f}, {ends[1]:.{decimals}f}]" if ends else "")


def _machine(frontier: Frontier) -> str:
    env = frontier.studies[0].records[0].get("env") or {}
    threads = env.get("threads")
    parts = [str(env.get("processor") or "processor unknown")]
    return ", ".join([*parts, f"{threads} thread{'s' * (threads != 1)}"] if threads else parts)


def _noisy(study: StudyRecords, frontier: Frontier) -> list[str]:
    """Return warnings where the run of the uncompressed model against itself differs by much."""
    found = []
    ends = interval(study.noise.get("latency_ratio_ci"))
    if ends and (ends[0] < 1 - WIDE or ends[1] > 1 + WIDE):
        found.append(
            f"The noise floor is wide: the uncompressed model timed against itself gives a latency ratio of "
            f"[{ends[0]:.2f}, {ends[1]:.2f}]; time again on a quiet machine before latencies are compared."
        )
    for name, value in (study.noise.get("quality") or {}).items():
        pair = interval(value)
        if pair and name == frontier.primary and max(map(abs, pair)) > frontier.margin / 4:
            found.append(
                f"The noise floor is wide: {frontier.title(name)} of the uncompressed model moves by up to "
                f"{max(map(abs, pair)):.2g} between two passes, beside a margin of {frontier.margin:g}."
            )
    return found


def _failures(point: Point) -> list[str]:
    """Return one line for each reason, with the seeds that share it."""
    reasons: dict[str, list[str]] = {}
    for seed, error in sorted(point.errors.items()):
        reasons.setdefault(error, []).append(str(seed))
    return [
        f"{point.label} failed (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}): {error}"
        for error, seeds in reasons.items()
    ]


def flat(value: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield names and values of an environment, as text."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield str(key), _pairs(item)
        elif str(key).endswith("_bytes") and number(item) is not None:
            yield str(key)[:-6], wording.amount("stored_bytes", number(item))
        else:
            yield str(key), str(item)


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return wording.NONE
    text = ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return (text[:237] + "...") if len(text) > 240 else text or wording.NONE


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + ")"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _some(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) <= 6 else f"{', '.join(labels[:5])} and {len(labels) - 5} more"


def _mean(source: Mapping[str, Any], name: str) -> float | None:
    return source[name].mean if name in source else None
