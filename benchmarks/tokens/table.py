"""Writes the tables of docs/tokens.md from the committed results.

python -m benchmarks.tokens.table               rewrite the page
python -m benchmarks.tokens.table out/tokens    take a finished study into benchmarks/results/tokens first
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.guides import RESULTS, ROOT, Guide, read

STUDY = RESULTS / "tokens"
PICTURE = ROOT / "docs" / "images" / "tokens_frontier.png"
KEPT = ("measurements.jsonl", "frontier.csv", "frontier.md", "study.yaml", "noise.json", "notes.json")


def points(values: list[float], digits: int = 2) -> str:
    """Return a mean with its interval."""
    mean, low, high = values
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def speed() -> str:
    """Return the speed-ups with both kernels, as shares of the ratio of multiply-adds."""
    lines = [
        "| batch | r | multiply-adds | speed-up | share of it | by the median | linear layers alone | published style "
        "| speed-up, packed | share of it | packed over stock |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in read("tokens_speed")["runs"]:
        batch, r, found = run["batch"], run["r"], {row["variant"]: row for row in run["rows"]}
        kinds = ("lessen", "linear layers", "published style", "packed lessen")
        ours, bound, theirs, packed = (found[f"{kind} r={r}"] for kind in kinds)
        cells = [
            f"{batch}",
            f"{r}",
            f"{ours['mac_ratio']:.2f}x",
            f"{ours['speed_up']:.2f}x",
            f"{ours['share_of_mac_ratio']:.2f}",
            f"{ours['median_share']:.2f}",
            f"{bound['share_of_mac_ratio']:.2f}",
            f"{theirs['speed_up']:.2f}x",
            f"{packed['speed_up']:.2f}x",
            f"{packed['share_of_mac_ratio']:.2f}",
            f"{packed['over_stock']:.2f}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def share() -> str:
    """Return accuracy at the same multiply-adds."""
    runs = read("tokens_cifar10_share")["runs"]
    lines = [
        f"Reference: {runs[0]['reference']:.2f} % (weights {runs[0]['weights_sha256'][:12]}).",
        "",
        "| multiply-adds | method | seeds | accuracy, % | change | DiffRate better by, points | by, nats "
        "| tokens after each block, first seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [row for run in runs for row in run["rows"]]
    for row in sorted(rows, key=lambda row: -row["budget"]):
        better = points(row["diffrate_minus_it"]) if "diffrate_minus_it" in row else "-"
        nats = row.get("cross_entropy_it_minus_diffrate")
        last = f"{points(nats, 3) if nats else '-'} | {' '.join(map(str, row['tokens'][0]))}"
        lines.append(
            f"| {row['macs_share']:.3f} | {row['method']} | {len(row['accuracies'])} | {row['accuracy']:.2f} "
            f"| {points(row['change'])} | {better} | {last} |"
        )
    return "\n".join(lines) + "\n"


def mismatch() -> str:
    """Return what the plug-ins recover on average where the rate differs from the one trained at."""
    lines = [
        "| model, served at | | there | compensated | lost to the rate trained at | recovered "
        "| lost to a model fine-tuned there | recovered | each seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = read("tokens_mismatch")["rows"]
    most = max(len(row["seeds"]) for row in rows)
    for row in (row for row in rows if len(row["seeds"]) == most):
        place = row["model"], row["target"]
        single = [one for one in rows if (one["model"], one["target"]) == place and len(one["seeds"]) == 1]
        for key, title, digits in (("right", "accuracy, %", 2), ("loss", "cross-entropy", 4)):
            part, cells = row[key], []
            for what in ("change", "mismatch"):
                found = part.get(what)
                back = found and found["recovered"]
                cells += [points(found["lost"], digits) if found else "-", share_back(back) if back else "-"]
                if back:
                    each = " ".join(f"{one[key][what]['recovered'][0]:.0%}" for one in single)
            seeds = each if cells[1] != "-" or cells[3] != "-" else "-"
            lines.append(
                f"| {row['model']}, r = {row['target']} | {title} | {part['plain']:.{digits}f} "
                f"| {part['compensated']:.{digits}f} | {' | '.join(cells)} | {seeds} |"
            )
    return "\n".join(lines) + "\n"


def share_back(values: list[float]) -> str:
    """Return a recovered share with its interval."""
    return "{:.0%} [{:.0%}, {:.0%}]".format(*values)


def study() -> str:
    """Return the verdicts of the committed study."""
    text = (STUDY / "frontier.md").read_text()
    table = text.split("## The trade", 1)[1].strip().split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    wanted = [rows[0].index(name) for name in ("recipe", "verdict", "after", "difference, 95 %", "multiply-adds")]
    wanted.append(rows[0].index("latency ratio"))
    return "\n".join("| " + " | ".join(row[at] for at in wanted) + " |" for row in rows) + "\n"


def take(out: Path) -> None:
    """Copy a finished study's figures and draw its accuracy against multiply-adds."""
    from lessen.frontier import Frontier
    from lessen.report.plot import picture

    STUDY.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(out / name, STUDY / name)
    PICTURE.write_bytes(picture(Frontier.load(out), "png", "macs"))


GUIDE = Guide("tokens", {"speed": speed, "share": share, "mismatch": mismatch, "study": study})

if __name__ == "__main__":
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    GUIDE.write()
