"""Writes the table of docs/search.md from the committed results: python -m benchmarks.search.table"""

from __future__ import annotations

import numpy as np

from benchmarks.guides import Guide, measured, read


def found() -> str:
    """Return, for each search, the share of the front that a tenth of the space finds and how many looks 98 % take."""
    result = read("search_enumerated")
    lines = [
        f"| search of {result['space']:,} recipes, {_seeds(result)} seeds | front found by {result['tenth']} looks: "
        "median [least] | looks until 98 % of it: median [most] | of lessen's, mean of logarithms | "
        "CPU seconds of the search |",
        "|---|--:|--:|--:|--:|",
    ]
    fewest = result["searches"]["lessen"]["needed"]
    for name, row in result["searches"].items():
        if "missing" in row:
            continue
        shares = row["share_at_tenth"]
        needed = [np.inf if looks is None else looks for looks in row["needed"]]
        lines.append(
            f"| {name} | {100 * np.median(shares):.1f} % [{100 * min(shares):.1f}] | {_looks(np.median(needed))} "
            f"[{_looks(max(needed))}] | {_times(needed, fewest, result['given'])} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def races() -> str:
    """Return, for each goal, how often a race names the winner of all rows and how many of them it reads."""
    if not measured("search_racing"):
        return "No figures are committed yet.\n"
    result = read("search_racing")
    lines = [
        f"| goal of {result['entrants']} recipes, {result['rows']:,} rows | same winner | rows read | at most | "
        "AUC between the two winners, at most |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in result["goals"]:
        read_, most = 100 * row["rows_read"], 100 * row["most_rows_read"]
        same = f"{100 * row['same_winner']:.1f} % of {row['repeats']}"
        lines.append(
            f"| `{row['budget']}` | {same} | {read_:.0f} % | {most:.0f} % | {row['largest_gap_to_the_winner']:.5f} |"
        )
    return "\n".join(lines) + "\n"


def _times(needed: list[float], fewest: list[float], given: int) -> str:
    """Return how many times as many looks a search takes, 95 % bootstrap over seeds; none found counts as all given."""
    ours, other = (np.log(np.minimum(each, given)) for each in (fewest, needed))
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(ours), (2, 10000, len(ours)))
    low, high = np.exp(np.quantile(other[draws[0]].mean(1) - ours[draws[1]].mean(1), [0.025, 0.975]))
    return f"{np.exp(other.mean() - ours.mean()):.2f}x [{low:.2f}, {high:.2f}]"


def _looks(count: float) -> str:
    return "more than were given" if np.isinf(count) else f"{count:,.0f}"


def _seeds(result: dict[str, object]) -> int:
    searches = result["searches"]
    assert isinstance(searches, dict)
    return len(next(row["needed"] for row in searches.values() if "needed" in row))


GUIDE = Guide("search", {"found": found, "races": races})

if __name__ == "__main__":
    GUIDE.write()
