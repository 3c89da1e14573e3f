"""Writes the tables and the picture of docs/ranking.md from the committed results."""

from __future__ import annotations

from benchmarks.guides import ROOT, Guide, read
from benchmarks.ranking.planted import plot, summary


def planted() -> str:
    """Return what each selection keeps and what that does to the model, means over seeds."""
    lines = [
        "| selection | AUC | difference [95 %] | bytes | time | precision | real of 9 | crosses |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = summary(read("ranking_planted")["seeds"])
    for line in found:
        kept = line["kept"]
        counts = "- | - | -"
        if kept:
            counts = f"{1 - kept['noise'] / kept['columns']:.0%} | {kept['real']:.2g} | {kept['crosses']:.2g}"
        difference = f"{line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}]"
        share = line["bytes"] / found[0]["bytes"]
        lines.append(
            f"| {line['name']} | {line['auc']:.4f} | {difference} | {share:.0%} | {line['time']:.2f} | {counts} |"
        )
    return "\n".join(lines) + "\n"


def outrank() -> str:
    """Return CPU seconds beside those of outrank on the same file."""
    found = read("ranking_outrank")
    peer, rows = found["peer_cpu_s_at_rows"], found["rows"]
    how = "extrapolated" if found["peer_extrapolated"] else "measured"
    lines = [
        f"| {rows:,} rows x {found['columns']} columns | CPU seconds | times fewer |",
        "|---|---|---|",
        f"| outrank 0.97.5, its default task ({how}) | {peer:.0f} | 1 |",
    ]
    labels = {
        "buffered": "the peer's own protocol (`lessen.selection.ranking.buffered`)",
        "columns": "`lessen rank`, columns as the peer's task does",
        "full": "`lessen rank` with crosses, redundancy, selection, transformations",
    }
    for name, label in labels.items():
        seconds = found["lessen"][name]["cpu_s"]
        lines.append(f"| {label} | {seconds:.1f} | {peer / seconds:.0f} |")
    return "\n".join(lines) + "\n"


def memory() -> str:
    """Return the peak memory of the large run as one sentence."""
    found = read("ranking_memory")
    return (
        f"{found['rows']:,} rows of eight columns, one of them all unique: {found['peak_rss_mb']:.0f} MB at the peak "
        f"and {found['cpu_s']:.0f} CPU seconds (`benchmarks/ranking/memory.py`).\n"
    )


GUIDE = Guide("ranking", {"planted": planted, "outrank": outrank, "memory": memory})

if __name__ == "__main__":
    GUIDE.write()
    picture = ROOT / "docs" / "images" / "ranking.png"
    plot(summary(read("ranking_planted")["seeds"]), picture)
