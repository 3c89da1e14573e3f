"""Do the intervals of flips and of net losses hold, how wide are they, and what does the paired test save?

    python -m benchmarks.judges.flips [--trials 10000] [--nulls 2000] [--out benchmarks/results]

Coverage: test sets of n answers with a true share of flips; of the flips a true part is lost, the rest gained. `width`
is the mean width by that of Clopper and Pearson's interval; of net losses by that of the exact unconditional one, found
by inverting Tango's score over all outcomes and nuisance values (n = 50 only). The paired test: the number of examples
at which an unpaired test of two accuracies has a power of 80 %, and the paired test's power with a quarter of them.
Writes judges_flips.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from lessen.environment import environment
from lessen.metrics.exact import exact_interval, net_loss_interval, paired_p

RESULTS = Path(__file__).parents[1] / "results"
NORMAL = NormalDist()
SIZES = (50, 200, 1000, 5000)
SHARES = (0.0, 0.002, 0.01, 0.03, 0.06, 0.1, 0.3)
SIDES = (0.5, 0.75, 1.0)


def plain(count: int, n: int) -> tuple[float, float]:
    """Return Clopper and Pearson's interval, by scipy."""
    from scipy.stats import beta

    low = beta.ppf(0.025, count, n - count + 1) if count else 0.0
    return float(low), float(beta.ppf(0.975, count + 1, n - count) if count < n else 1.0)


def coverage(trials: int) -> list[dict[str, Any]]:
    g, rows = np.random.default_rng(0), []
    for n in SIZES:
        for share in SHARES:
            counts = g.binomial(n, share, trials)
            kinds, times = np.unique(counts, return_counts=True)
            ends = np.array([exact_interval(int(count), n) for count in kinds])
            exact = np.array([plain(int(count), n) for count in kinds])
            held = (ends[:, 0] <= share) & (share <= ends[:, 1])
            widths = [float(np.average(np.diff(each, axis=1)[:, 0], weights=times)) for each in (ends, exact)]
            row = {"what": "flips", "n": n, "share": share, "covered": float(np.average(held, weights=times))}
            rows.append({**row, "width": widths[0] / widths[1]})
            for side in SIDES:
                lost = g.binomial(counts, side)
                low, high = net_loss_interval(lost, counts - lost, n)
                truth = share * (2 * side - 1)
                covered = float(((low <= truth) & (truth <= high)).mean())
                row = {"what": "net loss", "n": n, "share": share, "lost of flips": side, "covered": covered}
                rows.append({**row, "points": float((high - low).mean())})
    return rows


def unconditional(n: int) -> dict[str, Any]:
    """Return mean widths of the net loss interval by those of the exact unconditional one, and its worst coverage."""
    from scipy.special import gammaln

    lost, gained = (each.ravel() for each in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    kept = lost + gained <= n
    b, c = lost[kept].astype(float), gained[kept].astype(float)
    ways = gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(n - b - c + 1)
    grid = np.linspace(-1, 1, 401)[1:-1]
    least, most = np.full(len(b), 1.0), np.full(len(b), -1.0)
    for truth in grid:
        score = np.abs(tango(b, c, n, truth))
        order = np.argsort(-score, kind="stable")
        last = np.searchsorted(-score[order], -score + 1e-9, side="right") - 1  # all that is as extreme
        worst = np.zeros(len(b))
        for more in np.linspace(0, 1, 41):
            gain = max(0.0, -truth) + more * (1 - abs(truth)) / 2
            worst = np.maximum(worst, np.cumsum(chances(ways, b, c, n, gain + truth, gain)[order])[last])
        inside = worst > 0.05
        least, most = np.where(inside, np.minimum(least, truth), least), np.where(inside, np.maximum(most, truth), most)
    low, high = net_loss_interval(b, c, n)
    rows, held = [], []
    for share in SHARES[1:]:
        for side in np.linspace(0.5, 1, 11):
            chance = chances(ways, b, c, n, share * side, share * (1 - side))
            truth = share * (2 * side - 1)
            held.append(float(chance[(low <= truth) & (truth <= high)].sum()))
            rows.append(float(chance @ (high - low) / (chance @ (most - least))))
    return {"n": n, "worst coverage": min(held), "width mean": float(np.mean(rows)), "width worst": max(rows)}


def chances(ways: np.ndarray, b: np.ndarray, c: np.ndarray, n: int, lost: float, gained: float) -> np.ndarray:
    logs = [np.log(max(value, 1e-300)) for value in (lost, gained, 1 - lost - gained)]
    return np.exp(ways + b * logs[0] + c * logs[1] + (n - b - c) * logs[2])


def tango(b: np.ndarray, c: np.ndarray, n: int, truth: float) -> np.ndarray:
    a2, b2, c2 = 2 * n, -b - c + (2 * n - b + c) * truth, -c * truth * (1 - truth)
    q = (np.sqrt(np.maximum(b2**2 - 4 * a2 * c2, 0)) - b2) / (2 * a2)
    return (b - c - n * truth) / np.sqrt(np.maximum(n * (2 * q + truth * (1 - truth)), 1e-12))


def unpaired_units(accuracy: float, loss: float) -> int:
    """Return the examples an unpaired two-sided z test of two accuracies needs for a power of 80 %."""
    variance = accuracy * (1 - accuracy) + (accuracy - loss) * (1 - accuracy + loss)
    return math.ceil((NORMAL.inv_cdf(0.975) + NORMAL.inv_cdf(0.8)) ** 2 * variance / loss**2)


def power(trials: int) -> list[dict[str, Any]]:
    g, rows = np.random.default_rng(1), []
    for accuracy in (0.6, 0.75, 0.9):
        for flips in (0.03, 0.06, 0.12):
            units = unpaired_units(accuracy, 0.01)
            for parts in (1, 4, 8, 16):
                n = units // parts
                counts = g.binomial(n, flips, trials)
                lost = g.binomial(counts, (flips + 0.01) / (2 * flips))
                found = np.array([paired_p(int(b), int(k - b)) < 0.05 for b, k in zip(lost, counts, strict=True)])
                found &= lost > counts - lost
                rows.append(
                    {
                        "accuracy": accuracy,
                        "flips": flips,
                        "unpaired needs": units,
                        "examples": n,
                        "power": float(found.mean()),
                    }
                )
    return rows


def nulls(trials: int) -> list[dict[str, Any]]:
    g, rows = np.random.default_rng(2), []
    for n in SIZES:
        for flips in (0.01, 0.06, 0.3):
            counts = g.binomial(n, flips, trials)
            lost = g.binomial(counts, 0.5)
            alarms = [paired_p(int(b), int(k - b)) < 0.05 for b, k in zip(lost, counts, strict=True)]
            rows.append({"n": n, "flips": flips, "alarms": float(np.mean(alarms))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--nulls", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    start = time.perf_counter()
    record = {
        "command": f"python -m benchmarks.judges.flips --trials {given.trials} --nulls {given.nulls}",
        "no flip in n, upper end times n": {n: exact_interval(0, n)[1] * n for n in SIZES},
        "coverage": coverage(given.trials),
        "net loss, all outcomes": unconditional(50),
        "power": power(given.nulls),
        "nulls": nulls(given.nulls),
        "environment": environment(1),
    }
    record["seconds"] = time.perf_counter() - start
    (given.out / "judges_flips.json").write_text(json.dumps(record, indent=1) + "\n")
    covered = [row["covered"] for row in record["coverage"]]
    widths = [row["width"] for row in record["coverage"] if "width" in row]
    print(f"covered {min(covered):.4f} at least, width {max(widths):.3f} at most; {record['net loss, all outcomes']}")
    print(f"alarms {max(row['alarms'] for row in record['nulls']):.3f} at most")
    for row in record["power"]:
        print(row)


if __name__ == "__main__":
    main()
