"""The seed at which a study may stop: verdicts looked at several times, and still right as often as promised.

Looking after every seed and stopping at the first verdict would be wrong too often. The looks before the last share one
false verdict in a hundred (a group-sequential design of constant early levels, after Haybittle and Peto): with K seeds
each of the K - 2 early intervals has the level 1 - 0.01 / (K - 2), so that it is much wider than 95 % after two seeds,
whose spread is hardly known, and half as wide again after ten. The last look is the verdict of an ordinary study.
`benchmarks/judges/stopping.py` holds it to its word by simulation.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

from lessen.frontier.verdict import UNKNOWN, Difference, Judgement, judge
from lessen.metrics.intervals import Z, student
from lessen.metrics.many import student_quantile

SPENT = 0.01
"""Chance of a false verdict that all early looks share."""


def early_verdict(
    difference: Difference, margin: float, seeds: int, resolution: float = 0.0, doubt: str = ""
) -> Judgement:
    """Return the verdict that is certain before the last seed, or "not enough data to say".

    Args:
        difference: of the seeds so far, two or more, from kept outcomes.
        seeds: how many the study has in all, so that `seeds` - 2 looks come before the last.
        resolution, doubt: as for `verdict.judge`.
    """
    seen, parts = len(difference.per_seed), difference.parts
    if seen < 2 or seen >= seeds or parts is None or difference.low is None or difference.high is None:
        return Judgement(UNKNOWN, "no look before two seeds and the last one")
    chance = 1.0 - SPENT / (seeds - 2) / 2.0
    total = parts.shared + parts.spread / seen
    share = parts.spread / seen / total if total > 0 else 0.0
    wider = NormalDist().inv_cdf(chance) / Z
    if share > 0.0:  # the seeds' own spread is known from few of them: as wide as if it were all there is
        wider = max(wider, student_quantile(chance, seen - 1) / student(seen - 1))
    ends = [difference.value + wider * (end - difference.value) for end in (difference.low, difference.high)]
    return judge(replace(difference, low=ends[0], high=ends[1]), margin, resolution, doubt)
