"""Gates (budget lines that a recipe must hold) and claims (what a method says it frees, against what was measured)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lessen.costs import RATIO, CostKind, cost_kinds
from lessen.errors import ConfigError
from lessen.frontier.point import Point
from lessen.frontier.records import number

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
         "kib": 2**10, "mib": 2**20, "gib": 2**30, "ms": 1, "s": 1}  # fmt: skip
_GATE = re.compile(
    r"\s*([A-Za-z][\w.@-]*)\s*(<=|>=)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%|[A-Za-z]*)\s*\Z"
)


@dataclass(frozen=True)
class Gate:
    """One budget line: `stored_bytes<=0.1x`, `latency_ms_p50<=3ms`, `auc>=-0.001`."""

    text: str
    name: str
    at_most: bool
    limit: float
    relative: bool
    """The limit is in units of the reference's cost."""
    unit: str = ""
    """As it was written, in small letters."""

    def holds(self, point: Point) -> bool:
        """Return True if the measurement proves the line.

        A line on a metric is about the difference to the reference, and the whole 95 % interval has to hold it;
        what was not measured does not hold.
        """
        if self.name in point.quality:
            difference = point.difference.get(self.name)
            end = None if difference is None else (difference.high if self.at_most else difference.low)
            return self._within(end)
        source = point.share if self.relative else point.cost
        return self._within(source[self.name].mean if self.name in source else None)

    def _within(self, value: float | None) -> bool:
        if value is None:
            return False
        return value <= self.limit if self.at_most else value >= self.limit


def parse_gates(value: str | Sequence[str]) -> tuple[Gate, ...]:
    """Parse `"stored_bytes<=0.1x, auc>=-0.001"` or a list of such lines.

    Raises:
        ConfigError: a line that is not NAME<=NUMBER or NAME>=NUMBER with a known unit, or a cost of nothing.
    """
    lines = value.split(",") if isinstance(value, str) else [str(line) for line in value]
    return tuple(_parse_gate(line.strip()) for line in lines if line.strip())


def _parse_gate(text: str) -> Gate:
    match = _GATE.match(text)
    unit = match.group(4).lower() if match else ""
    if match is None or (unit not in UNITS and unit not in ("x", "%")):
        raise ConfigError(
            f"gate {text!r} is not understood; write NAME<=NUMBER or NAME>=NUMBER, the number plain, in kB, MB, GB "
            "or as a multiple of the reference such as 0.1x"
        )
    name, operator, digits = match.group(1, 2, 3)
    scale = {"x": 1.0, "%": 0.01}.get(unit) or float(UNITS[unit])
    known = any(kind.name == name and not kind.more_is_better for kind in cost_kinds())
    if known and operator == "<=" and float(digits) <= 0:
        raise ConfigError(f"gate {text!r} cannot be held: {name} is above 0 whatever is done; give what you can pay")
    return Gate(text, name, operator == "<=", float(digits) * scale, unit in ("x", "%"), unit)


def check_units(gates: Sequence[Gate], metrics: Collection[str]) -> None:
    """Refuse a line on a metric whose limit is in bytes, in seconds or a multiple of the reference's.

    Raises:
        ConfigError: names the line; a metric's limit is a difference to the reference, plain or in per cent.
    """
    for gate in gates:
        if gate.name in metrics and gate.unit not in ("", "%"):
            raise ConfigError(
                f"gate {gate.text!r} is not understood: a line on a metric is the difference to the reference that you "
                f"accept, a plain number such as {gate.name}>=-0.001, not one in {gate.unit!r}"
            )


def claim_flags(point: Point, latency_noise: tuple[float, float] | None = None) -> tuple[str, ...]:
    """Return one line for each claim of the recipe's methods that the measurement does not bear out.

    Args:
        latency_noise: 95 % interval of the latency ratio in the A/A run of the uncompressed model.
    """
    if point.failed:
        return ()
    claims = {str(claim) for step in point.steps for claim in claims_of(step)}
    flags = [flag for step in point.steps if (flag := _step_flag(step))]
    if len(point.steps) == 1 and "stored_bytes" in point.share and point.share["stored_bytes"].mean >= 1:
        flags = []  # the line on the whole recipe says it
    for kind in cost_kinds(point.cost):
        if kind == RATIO and kind.claim in claims:
            flags += _latency_flags(point, latency_noise)
        elif {kind.claim, kind.name} & claims:
            flags += _claim_flag(point, kind)
    return tuple(dict.fromkeys(flags))


def _claim_flag(point: Point, kind: CostKind) -> list[str]:
    share = point.share.get(kind.name)
    claim = kind.claim or kind.name
    if share is None:
        return [f"claims {claim}, but {kind.name} was not measured"] if kind.name not in point.cost else []
    if (share.mean <= 1) if kind.more_is_better else (share.mean >= 1):
        change = "grow" if kind.more_is_better else "shrink"
        return [f"claims {claim}, but {kind.name} did not {change} ({share.mean:.3g} of the reference)"]
    return []


def claims_of(step: Mapping[str, Any]) -> Sequence[Any]:
    """Return what a step of the ledger claims to save; records of earlier versions call it `frees`."""
    found: Sequence[Any] = step.get("claims", step.get("frees")) or ()
    return found


def _step_flag(step: Mapping[str, Any]) -> str | None:
    before, after = number(step.get("bytes_before")), number(step.get("bytes_after"))
    if "bytes" not in claims_of(step) or before is None or after is None or after < before:
        return None
    return f"the step {step.get('method')} claims bytes, but took {before:,.0f} bytes to {after:,.0f}"


def _latency_flags(point: Point, noise: tuple[float, float] | None) -> list[str]:
    ratio = point.cost.get("latency_ratio")
    if ratio is None:
        return ["claims latency, but latency was not measured"]
    if point.latency_interval and point.latency_interval[1] < 1:
        if noise and point.latency_interval[1] >= noise[0]:
            return [f"no faster: latency ratio {ratio.mean:.2f} lies in the noise of the A/A run"]
        return []
    if point.latency_interval is None:
        return [] if ratio.mean < 1 else [f"no faster: latency ratio {ratio.mean:.2f}"]
    low, high = point.latency_interval
    if low > 1:
        return [f"slower: latency ratio {ratio.mean:.2f} [{low:.2f}, {high:.2f}]"]
    return [f"no faster: latency ratio {ratio.mean:.2f}, its interval [{low:.2f}, {high:.2f}] includes 1"]
