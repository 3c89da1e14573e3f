"""Writes the tables of docs/tokens.md from the committed results.

python benchmarks/tokens_table.py               rewrite the page
python benchmarks/tokens_table.py out/tokens    take a finished study into benchmarks/results/tokens first
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STUDY = RESULTS / "tokens"
PAGE = ROOT / "docs" / "tokens.md"
PICTURE = ROOT / "docs" / "images" / "tokens_frontier.png"
KEPT = ("measurements.jsonl", "frontier.csv", "frontier.md", "study.yaml", "noise.json", "notes.json")
MARKS = re.compile(r"(<!-- (speed|share|mismatch|study):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)


def read(name: str) -> dict:
    """Return one committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def points(values: list[float], digits: int = 2) -> str:
    """Return a mean with its interval."""
    mean, low, high = values
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def speed() -> str:
    """Return the speed-ups with both kernels, as shares of the ratio of multiply-adds."""
    found = {(row["batch"], row["variant"]): row for row in read("tokens_speed")["rows"]}
    lines = [
        "| batch | r | multiply-adds | speed-up | share of it | linear layers alone | published style "
        "| speed-up, packed | share of it | packed over stock |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for batch, variant in found:
        if not variant.startswith("lessen"):
            continue
        r = variant.removeprefix("lessen r=")
        kinds = ("lessen", "linear layers", "published style", "packed lessen")
        ours, bound, theirs, packed = (found[batch, f"{kind} r={r}"] for kind in kinds)
        cells = [
            f"{batch}", r, f"{ours['mac_ratio']:.2f}x", f"{ours['speed_up']:.2f}x", f"{ours['share_of_mac_ratio']:.2f}",
            f"{bound['share_of_mac_ratio']:.2f}", f"{theirs['speed_up']:.2f}x",
            f"{packed['speed_up']:.2f}x", f"{packed['share_of_mac_ratio']:.2f}",
            f"{packed['over_stock']:.2f}x",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def share() -> str:
    """Return accuracy at the same multiply-adds."""
    result = read("tokens_cifar10_share")
    lines = [
        f"Reference: {result['reference']:.2f} % (weights {result['weights_sha256'][:12]}).",
        "",
        "| multiply-adds | method | accuracy | change | DiffRate better by | tokens after each block |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        better = points(row["diffrate_minus_it"]) if "diffrate_minus_it" in row else "-"
        counts = " ".join(map(str, row["tokens"]))
        lines.append(
            f"| {row['macs_share']:.3f} | {row['method']} | {row['accuracy']:.2f} % | {points(row['change'])} "
            f"| {better} | {counts} |"
        )
    return "\n".join(lines) + "\n"


def mismatch() -> str:
    """Return what the plug-in recovers where the rate differs from the one trained at."""
    lines = [
        "| served at | seed of the plug-in | | as trained | there | compensated | lost | recovered |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = sorted(read("tokens_cifar10_mismatch")["rows"], key=lambda row: (row["target"], row["seed"]))
    for row in rows:
        for key, title, digits in (("right", "accuracy, %", 2), ("loss", "cross-entropy", 4)):
            part = row[key]
            middle = " | ".join(f"{part[name]:.{digits}f}" for name in ("matched", "plain", "compensated"))
            back = "{:.0%} [{:.0%}, {:.0%}]".format(*part["recovered"]) if part["recovered"] else "-"
            lost = points(part["lost"], digits)
            lines.append(f"| r = {row['target']} | {row['seed']} | {title} | {middle} | {lost} | {back} |")
    return "\n".join(lines) + "\n"


def study() -> str:
    """Return the verdicts of the committed study."""
    text = (STUDY / "frontier.md").read_text()
    table = text.split("## The trade", 1)[1].strip().split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    wanted = [rows[0].index(name) for name in ("recipe", "verdict", "after", "difference, 95 %", "multiply-adds")]
    wanted.append(rows[0].index("latency ratio"))
    return "\n".join("| " + " | ".join(row[at] for at in wanted) + " |" for row in rows) + "\n"


def page(text: str) -> str:
    """Return the page with fresh tables."""
    tables = {"speed": speed, "share": share, "mismatch": mismatch, "study": study}
    return MARKS.sub(lambda found: found[1] + tables[found[2]]() + found[3], text)


def take(out: Path) -> None:
    """Copy a finished study's figures and draw its accuracy against multiply-adds."""
    from lessen.frontier import Frontier
    from lessen.report.plot import picture

    STUDY.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(out / name, STUDY / name)
    PICTURE.write_bytes(picture(Frontier.load(out), "png", "macs"))


if __name__ == "__main__":
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    PAGE.write_text(page(PAGE.read_text()))
