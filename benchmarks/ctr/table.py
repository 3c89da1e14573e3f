"""Writes the table of docs/bars.md from the committed results: python -m benchmarks.ctr.table"""

from __future__ import annotations

from benchmarks.guides import Guide, read


def measured() -> str:
    """Return memory of a long log and speed of training beside FuxiCTR."""
    memory = read("ctr_memory")
    lines = [
        "| what | figure | script |",
        "|---|---|---|",
        f"| {memory['rows'] // 10**6} million rows of 39 fields ({memory['data_mb'] / 1000:.1f} GB of CSV): encode, "
        f"then one shuffled epoch of batches | {memory['peak_rss_mb'] / 1000:.1f} GB resident at most "
        "| `benchmarks/ctr/memory.py` |",
    ]
    settings = "DeepFM 400-400-400, d 10, batch 4096, beside FuxiCTR 2.3.10"
    for ids, updates in ((250_000, "lazy-adam"), (25_000, "lazy-adam"), (25_000, "dense")):
        found = read(f"ctr_training_{ids}_{updates}")
        low, high = min(found["ratios"]), max(found["ratios"])
        how = "lazy Adam" if updates == "lazy-adam" else "dense Adam"
        lines.append(
            f"| training {settings}, 39 x {ids:,} ids, {how} | {found['ratio']:.2f} times the samples per CPU-second "
            f"({len(found['ratios'])} repetitions, {low:.2f} to {high:.2f}) | `benchmarks/ctr/training.py` |"
        )
    return "\n".join(lines) + "\n"


GUIDE = Guide("bars", {"measured": measured})

if __name__ == "__main__":
    GUIDE.write()
