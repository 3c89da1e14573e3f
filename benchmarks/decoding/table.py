"""Writes the tables of docs/decoding.md from the committed results: python -m benchmarks.decoding.table"""

from __future__ import annotations

import math

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


def peer() -> str:
    """Return tokens a second of processor time on the same GGUF file, and what llama.cpp gains over lessen."""
    summary = read("decoding_llamacpp")["summary"]
    modes = {
        "plain": "transformers",
        "lessen": "lessen",
        "llamacpp": "llama.cpp",
        "llamacpp_lookup": "its prompt lookup",
    }
    lines = [f"| prompts | {' | '.join(modes.values())} | llama.cpp over lessen |", f"|---{'|---' * (len(modes) + 1)}|"]
    for name, found in summary.items():
        speeds = " | ".join(f"{found['tokens_per_cpu_s'][mode]:.1f}" for mode in modes)
        over = cell(found["llamacpp_over_lessen"], found["prompts"])
        lines.append(f"| {SETS[name]} ({found['prompts']}) | {speeds} | {over} |")
    return "\n".join(lines) + "\n"


def gains() -> str:
    """Return what each part gains, as ratios of measured processor times whose product is the gain over `generate`."""
    lines = ["| prompts | lean loop | packing | copying | product: over `generate` |", "|---|---|---|---|---|"]
    for name, found in read("decoding_llamacpp")["summary"].items():
        parts = " | ".join(cell(ratio, found["prompts"]) for ratio in found["gain"].values())
        product = math.prod(ratio[0] for ratio in found["gain"].values())
        lines.append(f"| {SETS[name]} ({found['prompts']}) | {parts} | {product:.2f} |")
    return "\n".join(lines) + "\n"


def straight() -> str:
    """Return the time of a pass as straight lines over that through the model's own forward."""
    found = read("decoding_straight")["rows"]
    lines = ["| rows of the pass | time over that through the model's own forward |", "|---|---|"]
    for rows, pair in found.items():
        low, high = pair["interval"]
        lines.append(f"| {rows} | {pair['ratio']:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines) + "\n"


TABLES = {"copying": copying, "peer": peer, "gains": gains, "straight": straight, "batches": batches}
GUIDE = Guide("decoding", TABLES)

if __name__ == "__main__":
    GUIDE.write()
