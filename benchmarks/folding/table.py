"""The tables of docs/folding.md, from the committed results: python -m benchmarks.folding.table"""

from __future__ import annotations

from benchmarks.guides import Guide, read


def drawn() -> str:
    """Return how many drawn networks each folder made smaller, what it left, and how far answers moved."""
    lines = ["| networks | by | smaller | numbers left | largest error | wrong |", "|---|---|---|---|---|---|"]
    for name, row in read("folding_fuzz")["rows"].items():
        who, kind = name.split()
        before, after = row["parameters"]
        lines.append(
            f"| {row['networks']:,} {kind} | {'`lessen fold`' if who == 'lessen' else who} | {row['folded']:,} | "
            f"{after / before:.0%} | {row['error']:.0e} | {len(row['failed'])} |"
        )
    return "\n".join(lines) + "\n"


def architectures() -> str:
    """Return the norms of each architecture before and after, and how far answers moved."""
    lines = ["| architecture | batch norms | left | numbers left | largest error |", "|---|---|---|---|---|"]
    for name, row in sorted(read("folding_fuzz")["architectures"].items()):
        before, after = row["parameters"]
        norms, left = row["norms"]
        lines.append(f"| {name} | {norms} | {left} | {after / before:.1%} | {row['error']:.0e} |")
    return "\n".join(lines) + "\n"


GUIDE = Guide("folding", {"folding-drawn": drawn, "folding-architectures": architectures})

if __name__ == "__main__":
    GUIDE.write()
