"""Writes the table of docs/visual-tokens.md from the committed result: python -m benchmarks.tokens.visual_table."""

from __future__ import annotations

from benchmarks.guides import Guide, read


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


GUIDE = Guide("visual-tokens", {"visual-speed": speed})

if __name__ == "__main__":
    GUIDE.write()
