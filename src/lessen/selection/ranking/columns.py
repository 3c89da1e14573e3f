"""What one pass says of each column: quality, scores, and a verdict in words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lessen.log import SILENT, Log
from lessen.selection.ranking.evidence import SURE, Evidence, Sampled, strongest
from lessen.selection.ranking.information import Chance, Contingency, Scores
from lessen.selection.ranking.noise import CEILING
from lessen.selection.ranking.scan import ColumnState, ScanState
from lessen.selection.ranking.tally import MAX_CLASSES

Verdict = Literal["label", "missing", "constant", "duplicate", "leak", "key", "noise", "useful", "unscored"]
ORDER: tuple[Verdict, ...] = ("label", "leak", "useful", "unscored", "key", "noise", "duplicate", "constant", "missing")
LEAK = 0.95
KEY = 0.95
SIGNIFICANT = 0.01
REPETITIONS = (0, 1, 10, 100, 1_000, 10_000, 100_000)


@dataclass(frozen=True)
class ColumnReport:
    """One row of the ranking. Scores are in nats; shares are of all rows."""

    name: str
    verdict: Verdict
    reason: str
    score: float
    """Mutual information with the label minus what a random label would show at this column's value counts."""
    mutual: float
    adjusted: float
    p_value: float
    determined: float
    coverage: float
    """Percent of rows that are not missing."""
    cardinality: float
    cardinality_error: float
    """Relative standard error of `cardinality`; 0 when every value was counted."""
    score_exact: bool
    """False when the score rests on a hash-chosen part of the values."""
    bytes_per_value: float
    rare_values: float
    """Estimated number of values seen at most `rare` times, and the percent of rows that hold one."""
    rare_rows: float
    numeric_share: float
    low: float
    high: float
    mean: float
    best_score: float
    """The score of the form that says most beyond chance, `best_form`: single values, or a coarser form of them."""
    best_form: str
    repetitions: dict[str, float]
    """How many values occur more than 0, 1, 10, ... times."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class NoiseFloor:
    """What columns made of nothing scored, and what a copy of the label scored."""

    scores: dict[str, float]
    cardinalities: dict[str, float]
    ceiling: float
    statement: str

    def below(self, cardinality: float) -> float:
        """Return the best score of noise with at most twice as many values: finer noise scatters more."""
        return max((s for n, s in self.scores.items() if self.cardinalities[n] <= 2 * cardinality), default=0.0)


def chance_of(state: ScanState, seed: int) -> Chance:
    """Return the chance model of the label's class counts."""
    return Chance(state.classes[:MAX_CLASSES], seed)


def noise_floor(state: ScanState, chance: Chance) -> NoiseFloor:
    """Score the controls."""
    scores = {name: _scores(column, state, chance).corrected for name, column in state.controls.items()}
    ceiling = scores.pop(CEILING, 0.0)
    cardinalities = {name: state.controls[name].tally.cardinality for name in scores}
    floor, count = max(scores.values(), default=0.0), len(scores)
    statement = (
        f"{count} columns made of noise, of 1 to {state.rows:,} values, scored at most {floor:.2g} nats; a column of "
        f"noise exceeds all {count} with probability about 1/{count + 1}"
    )
    return NoiseFloor(scores, cardinalities, ceiling, statement)


def report_columns(
    state: ScanState, chance: Chance, floor: NoiseFloor, rare: int, log: Log = SILENT
) -> list[ColumnReport]:
    """Return the columns: the label, then by verdict, those that say something first, then by their best score."""
    copies = _duplicates(state)
    sampled = Sampled(state, chance.seed)
    reports = []
    for done, (name, column) in enumerate(state.columns.items(), 1):
        reports.append(_report(name, column, state, chance, floor, copies.get(name, ""), rare, sampled))
        log.progress("columns", done, len(state.columns))
    return sorted(reports, key=lambda row: (ORDER.index(row.verdict), -row.best_score))


def _scores(column: ColumnState, state: ScanState, chance: Chance) -> Scores:
    return chance.scores(column.tally.contingency(state.classes[:MAX_CLASSES]))


def _duplicates(state: ScanState) -> dict[str, str]:
    """Return for each column that equals an earlier one, row by row, the name of that one; the label comes first."""
    groups: dict[int, list[str]] = defaultdict(list)
    order = sorted(state.columns, key=lambda name: name != state.label.name)
    for name in order:
        groups[state.columns[name].signature].append(name)
    return {name: group[0] for group in groups.values() for name in group[1:]}


def _report(
    name: str,
    column: ColumnState,
    state: ScanState,
    chance: Chance,
    floor: NoiseFloor,
    copy_of: str,
    rare: int,
    sampled: Sampled,
) -> ColumnReport:
    tally, rows = column.tally, state.rows
    scored = state.label.name is not None
    table = tally.contingency(state.classes[:MAX_CLASSES])
    if scored and not tally.exact and name in sampled.frame.columns:
        drawn = sampled.tally(sampled.hashes(name))
        table = tally.with_heavy(drawn, int(state.classes[:MAX_CLASSES].sum()), state.classes[:MAX_CLASSES])
    scores = chance.scores(table) if scored else Scores(0.0, 0.0, 0.0, 0.0)
    p_value = chance.p_value(table, scores.corrected) if scored else 1.0
    counts, share = tally.value_counts(), tally.share
    verdict, reason = _verdict(name, column, state, scores, p_value, floor, copy_of, chance, table)
    best = Evidence("single values", scores.corrected, p_value)
    if verdict in ("noise", "key") and scored:
        found = strongest(name, tally, column.numbers > 0.5 * (rows - column.missing), sampled, chance)
        if found is not None:
            best, verdict = found, "useful"
            reason = (
                f"{found.form}: {found.score:.4g} nats, chance of noise {found.p_value:.1g}; single values are "
                "too thin to tell"
            )
    return ColumnReport(
        name=name,
        verdict=verdict,
        reason=reason,
        score=scores.corrected,
        mutual=scores.mutual,
        adjusted=scores.adjusted,
        p_value=p_value,
        determined=scores.determined,
        coverage=100.0 * (1.0 - column.missing / rows),
        cardinality=tally.cardinality,
        cardinality_error=tally.cardinality_error,
        score_exact=tally.exact,
        bytes_per_value=column.text_bytes / rows,
        rare_values=float((counts <= rare).sum() / share),
        rare_rows=float(100.0 * counts[counts <= rare].sum() / max(counts.sum(), 1)),
        numeric_share=column.numbers / rows,
        low=column.low,
        high=column.high,
        mean=column.total / column.numbers if column.numbers else float("nan"),
        best_score=best.score,
        best_form=best.form,
        repetitions={f">{bound}": float((counts > bound).sum() / share) for bound in REPETITIONS},
    )


def _verdict(
    name: str,
    column: ColumnState,
    state: ScanState,
    scores: Scores,
    p_value: float,
    floor: NoiseFloor,
    copy_of: str,
    chance: Chance,
    table: Contingency,
) -> tuple[Verdict, str]:
    label, cardinality = state.label.name, column.tally.cardinality
    if name == label:
        return "label", ""
    if column.missing == state.rows:
        return "missing", "no row has a value"
    if cardinality <= 1:
        return "constant", "one value in every row"
    if copy_of:
        if copy_of == label:
            return "leak", f"equal to the label {label!r} in every row"
        return "duplicate", f"equal to {copy_of!r} in every row"
    # a label with a handful of positives is copied by chance: a leak has to be sure, too
    above = scores.corrected > floor.below(cardinality) and p_value <= SIGNIFICANT
    if scores.determined >= LEAK and above and chance.tail(table, scores) <= SURE:
        return "leak", f"removes {100 * scores.determined:.1f}% of the label's entropy: check that it is known in time"
    if cardinality >= KEY * state.rows and state.rows > 1:
        hint = "; see its transformations" if column.numbers > 0.5 * state.rows else ""
        return "key", f"about {cardinality:,.0f} values in {state.rows:,} rows: each is seen about once{hint}"
    if label is None:
        return "unscored", "no label was given"
    if p_value > SIGNIFICANT or scores.corrected <= 0:
        return "noise", f"{p_value:.0%} of random labels score as high"
    below = floor.below(cardinality)
    if scores.corrected <= below:
        return "noise", f"a noise column of no more values scores {below:.2g} nats"
    return "useful", f"above the noise floor of {max(below, 0.0):.2g} nats; p at most {p_value:.2f}"
