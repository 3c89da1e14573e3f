"""Writes the tables of docs/decoding.md from the committed results: python -m benchmarks.decoding.table"""

from __future__ import annotations

from benchmarks.guides import Guide, read

SETS = {
    "edit": "light edits",
    "mt_turn2": "MT-Redundant, turn 2",
    "mt_turn1": "MT-Redundant, turn 1",
    "open": "open questions",
    "humaneval": "HumanEval",
}
MODES = {
    "lookup": "prompt lookup",
    "assisted": "assisted",
    "plain_packed": "plain, packed weights",
    "lessen_stock": "lessen, stock kernels",
    "lessen": "lessen",
}


def cell(ratio: list[float], count: int) -> str:
    """Return a ratio with its interval, or with the number of samples where these are too few for one."""
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if count > 2 else f"{ratio[0]:.2f} (n={count})"


def copying() -> str:
    """Return the speed-ups over plain `generate`, total processor time, with 95 % intervals."""
    summary = read("decoding_copying")["summary"]
    lines = [f"| prompts | {' | '.join(MODES.values())} | identical |", f"|---{'|---' * (len(MODES) + 1)}|"]
    for name, label in SETS.items():
        if name not in summary:
            continue
        cells = []
        for mode in MODES:
            found = summary[name].get(mode)
            cells.append("-" if found is None else cell(found["cpu"], found["prompts"]))
        own = summary[name]["lessen"]
        lines.append(f"| {label} ({own['prompts']}) | {' | '.join(cells)} | {own['identical']}/{own['prompts']} |")
    return "\n".join(lines) + "\n"


def batches() -> str:
    """Return the throughput of unpadded batches over other ways, total processor time."""
    summary = read("decoding_batches")["summary"]
    lines = [
        "| batch, drafts | over padding the same drafts | over plain batched `generate` | rows saved |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(summary.items()):
        over = found["throughput_over"]
        cells = " | ".join(cell(over[other]["cpu"], found["batches"]) for other in ("padded", "plain"))
        lines.append(f"| {name.replace(' ', ', ')} | {cells} | {found['rows_saved']:.0%} |")
    return "\n".join(lines) + "\n"


GUIDE = Guide("decoding", {"copying": copying, "batches": batches})

if __name__ == "__main__":
    GUIDE.write()
