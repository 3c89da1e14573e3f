"""How figures are written: units, signs, intervals and the sentence that opens a report."""

from __future__ import annotations

import math

from lessen.costs import cost_kind
from lessen.frontier import Estimate, Frontier, Point
from lessen.frontier.verdict import BETTER, KEPT, UNKNOWN, WITHIN, WORSE, Difference

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def cost_name(name: str) -> str:
    """Return a cost in words."""
    return cost_kind(name).title


def amount(name: str, value: float | None) -> str:
    """Return a cost with its unit: 353 kB, 1.42 ms, 61.0 k."""
    if value is None:
        return NONE
    unit = cost_kind(name).unit
    if unit == "B":
        return _scaled(value, ("B", "kB", "MB", "GB", "TB"))
    if unit == "ms":
        return f"{_digits(value)} ms"
    if unit == "/s":
        return _scaled(value, ("", "k", "M", "G")).strip() + " /s"
    if unit == "s":
        return f"{_digits(1000 * value)} ms" if 0 < value < 0.1 else f"{_digits(value)} s"
    if unit == "x":
        return f"{value:.2f}×"
    return _scaled(value, ("", "k", "M", "G", "T")).strip()


def share(value: float | None) -> str:
    """Return a share of the reference in per cent, three digits at most."""
    if value is None:
        return NONE
    digits = _digits(100 * value)
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} %"


def signed(value: float | None, decimals: int) -> str:
    """Return a difference with its sign and a true minus."""
    if value is None:
        return NONE
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def decimals_for(margin: float) -> int:
    """Return the decimals that show a tenth of the margin."""
    return min(12, max(0, 1 - math.floor(math.log10(margin))))


def between(low: float | None, high: float | None, decimals: int) -> str:
    """Return an interval of differences, or say that there is none."""
    return "no interval" if low is None or high is None else f"[{signed(low, decimals)}, {signed(high, decimals)}]"


def difference(value: Difference | None, decimals: int) -> str:
    """Return a difference with its 95 % interval."""
    if value is None:
        return NONE
    return f"{signed(value.value, decimals)} {between(value.low, value.high, decimals)}"


def with_spread(estimate: Estimate | None, decimals: int) -> str:
    """Return a mean with its standard deviation over seeds."""
    if estimate is None:
        return NONE
    return f"{estimate.mean:.{decimals}f}" + ("" if estimate.spread is None else f" ± {estimate.spread:.{decimals}f}")


def latency(point: Point) -> str:
    """Return the latency ratio and its interval."""
    ratio = point.cost.get("latency_ratio")
    if ratio is None:
        return NONE
    ends = point.latency_interval
    return f"{ratio.mean:.2f}×" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def headline(frontier: Frontier) -> str:
    """Return the verdict on the whole study in one sentence."""
    if frontier.doubts:
        return f"No verdict can be given: {frontier.doubts[0]}."
    if not frontier.measured:
        return "Nothing was measured: every recipe failed."
    metric, best = frontier.title(frontier.primary), frontier.best(frontier.cost)
    decimals = decimals_for(frontier.margin)
    limit = f"{frontier.margin:g}"
    if best is None:
        return _no_winner(frontier, metric, limit)
    change = best.difference[frontier.primary]
    cost = frontier.cost
    price = f"keeps {share(best.axis(cost))} of the {cost_name(cost)}"
    if cost in best.reference_cost:
        before, after = best.reference_cost[cost].mean, best.cost[cost].mean
        price += f" ({amount(cost, before)} to {amount(cost, after)})"
    speed = f" at {latency(best).split(' ')[0]} the latency" if "latency_ratio" in best.cost else ""
    return (
        f"{best.label} {price}{speed}; {metric} moves by {difference(change, decimals)}, within the margin of {limit}."
    )


def tally(frontier: Frontier) -> list[tuple[str, int]]:
    """Return how many recipes met each end, in a fixed order."""
    failed = sum(point.failed for point in frontier)
    return [*((verdict, frontier.count(verdict)) for verdict in (BETTER, WITHIN, UNKNOWN, WORSE)), ("failed", failed)]


def _no_winner(frontier: Frontier, metric: str, limit: str) -> str:
    held = [point for point in frontier.measured if point.verdict in KEPT]
    if held and frontier.gates:
        return f"No recipe holds every budget line ({', '.join(gate.text for gate in frontier.gates)})."
    gained = [point for point in held if point.verdict == BETTER]
    if gained:
        best = max(gained, key=lambda point: -point.difference[frontier.primary].loss[0])
        change = difference(best.difference[frontier.primary], decimals_for(frontier.margin))
        return f"{best.label} gains quality, {metric} {change}, and stores no fewer bytes than the reference."
    if held:
        saves = "stores fewer bytes" if frontier.cost == "stored_bytes" else f"takes less {cost_name(frontier.cost)}"
        return f"Not worth it: no recipe within the {metric} margin of {limit} {saves} than the reference."
    if frontier.count(UNKNOWN):
        return f"Not enough data to say: no recipe is proven to stay within the {metric} margin of {limit}."
    return f"Not worth it: every recipe loses more {metric} than the margin of {limit}."


def _digits(value: float) -> str:
    """Return three significant digits without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - int(f"{value:.2e}".split("e")[1]))
    return f"{value:.{min(places, 6)}f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    whole = step == 0 and float(value).is_integer()
    return f"{int(value) if whole else _digits(value)} {units[step]}"
