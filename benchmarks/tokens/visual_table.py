"""Writes the table of docs/visual-tokens.md from the committed result: python -m benchmarks.tokens.visual_table."""

from __future__ import annotations

from typing import Any

from benchmarks.guides import Guide, read

KINDS = ("what", "colour", "row", "column", "count", "exists", "side")


def speed() -> str:
    """Return what each way saves and how much of it shows as time."""
    lines = [
        "| | tokens entering each layer | multiply-adds | speed-up | by the median | share of it | keys and values |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = read("tokens_visual")["rows"]
    for row in rows:
        ratio, fast, middle = row["mac_ratio"], row["speed_up_fastest"], row["speed_up_median"]
        cells = [
            row["variant"],
            " ".join(map(str, row["tokens"])),
            f"{ratio:.2f}x",
            f"{fast:.2f}x",
            f"{middle:.2f}x",
            f"{middle / ratio:.2f}",
            f"{row['kv_bytes'] / rows[0]['kv_bytes']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def points(values: list[float]) -> str:
    """Return a share in per cent with its interval."""
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def places() -> str:
    """Return right answers of every way at its multiply-adds."""
    document = read("tokens_places")
    lines = [
        "| | multiply-adds | keys and values | mean row kept | places, % | others, % | " + " | ".join(KINDS) + " |",
        "|---" * (6 + len(KINDS)) + "|",
    ]
    whole = document["rows"][0]["kv_bytes"]
    for row in document["rows"]:
        right = row["right"]
        cells = [
            row["name"],
            "-" if row["macs_share"] is None else f"{row['macs_share']:.1%}",
            f"{row['kv_bytes'] / whole:.1%}",
            "-" if row["mean_row"] is None else f"{row['mean_row']:.1f}",
            points(right["location"]),
            points(right["others"]),
            *(f"{100 * right[kind][0]:.0f}" for kind in KINDS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def better() -> str:
    """Return what FEATHER answers better than each other choice, paired by picture."""
    lines = ["| | places, points | others, points |", "|---|---|---|"]
    for name, parts in read("tokens_places")["differences"].items():
        lines.append(f"| {name} | {points(parts['location'])} | {points(parts['others'])} |")
    return "\n".join(lines) + "\n"


def projectors() -> str:
    """Return right answers of 36 tokens made in three ways, after the same short training."""
    from benchmarks.tokens.projectors import shares

    document = read("tokens_projectors")
    lines = ["| | steps | seeds | places, % | others, % | all, % |", "|---|---|---|---|---|---|"]

    def line(name: str, steps: str, found: list[dict[str, Any]]) -> None:
        cells = []
        for part in ("location", "others", "all"):
            values = [100 * shares(right)[part] for right in found]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.1f}{spread}")
        lines.append(f"| {name} | {steps} | {len(found)} | {' | '.join(cells)} |")

    for name, right in document["untrained"].items():
        line(name, "-", [right])
    for steps, arm in sorted({(row["steps"], row["arm"]) for row in document["rows"]}):
        own = [row for row in document["rows"] if (row["arm"], row["steps"]) == (arm, steps)]
        line(arm, f"{steps:,}", [row["right"] for row in own])
    return "\n".join(lines) + "\n"


TABLES = {"visual-speed": speed, "visual-places": places, "visual-better": better, "visual-projectors": projectors}
GUIDE = Guide("visual-tokens", TABLES)

if __name__ == "__main__":
    GUIDE.write()
