"""Writes the lookup tables of docs/embeddings.md from the committed results.

python -m benchmarks.embeddings.lookup_table
"""

from __future__ import annotations

from benchmarks.guides import Guide, read

CELLS = [("one", 1), ("one", 2), ("bag20", 1), ("bag20", 2)]


def verdict(found: list[dict]) -> str:
    """Say whether every cell meets the bar, and which do not."""
    bar = found[0]["bar"]
    if bar is None:
        return ""
    missed = [f"{r['work']}, {r['threads']}" for r in found if r["ratio"] > bar]
    if missed:
        return f"{bar:g}: missed ({'; '.join(missed)})"
    across = [f"{r['work']}, {r['threads']}" for r in found if r["ratio_high"] > bar]
    return f"{bar:g}: met" + (f" (interval reaches across: {'; '.join(across)})" if across else "")


def lookups(result: dict) -> str:
    """Return a table for each size: ratios of time to float32, by kernels and (in brackets) by torch's operators."""
    found = {(r["rows"], r["dim"], r["table"], r["work"], r["threads"], r["way"]): r for r in result["records"]}
    resident = {(r["rows"], r["dim"], r["table"], r["way"]): r for r in result["resident"]}
    lines = []
    for size in sorted({key[:2] for key in found}):
        firsts = {key[2]: row for key, row in found.items() if key[:2] == size}
        # tables with a bar first, the strictest bar before others, then by size
        names = sorted(firsts, key=lambda name: (firsts[name]["bar"] or 9.0, -firsts[name]["bytes"]))
        lines += [
            f"**{size[0]:,} rows x {size[1]}**",
            "",
            "| table | MB | one id, 1 thread | 2 threads | bags of 20, 1 thread | 2 threads | bar "
            "| memory held / arithmetic |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name in names:
            cells, best = [], []
            for cell in CELLS:
                slow = found.get((*size, name, *cell, "torch"))
                fast = found.get((*size, name, *cell, "kernels"), slow)
                if fast is None or slow is None:
                    cells.append("-")
                    continue
                best.append(fast)
                cells.append(f"{fast['ratio']:.2f}" + (f" ({slow['ratio']:.2f})" if fast is not slow else ""))
            held = [resident.get((*size, name, way)) for way in ("loaded", "mapped")]
            memory = "; mapped ".join(f"{r['ratio']:.3f}" for r in held if r)
            megabytes = f"{best[0]['bytes'] / 1e6:.1f}"
            lines.append(f"| {' | '.join([name, megabytes, *cells, verdict(best), memory])} |")
        lines.append("")
    return "\n".join(lines)


def where(result: dict) -> str:
    """Return the machine in a line."""
    known = result["environment"]
    versions = f"torch {known['packages']['torch']}, llvmlite {known['llvmlite']}"
    return f"Measured on {known['processor']}, two cores, {versions}.\n\n"


def section() -> str:
    """Return the machine and the tables of every size."""
    result = read("embeddings_lookup")
    return where(result) + lookups(result)


GUIDE = Guide("embeddings", {"lookups": section})

if __name__ == "__main__":
    GUIDE.write()
