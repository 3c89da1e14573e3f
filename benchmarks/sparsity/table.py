"""Writes the tables of docs/sparsity.md from the committed results: python -m benchmarks.sparsity.table"""

from __future__ import annotations

import csv
from typing import Any

from benchmarks.guides import RESULTS, Guide, measured, read
from lessen.sparsity.pattern import Pattern
from lessen.stored.linears.sparse_matrix import SparseMatrix

TRAINED = {
    "dense": "dense",
    "1:16 one-shot": "one shot",
    "1:16 one-shot trained": "one shot, trained under its mask",
    "1:16 sr-ste": "`sr-ste`",
    "1:16 exponential": "`nm-progressive`, exponential",
    "1:16 exponential, half strict": "`nm-progressive`, exponential, `fine=0.5`",
}
MATRICES = (
    (17408, ("25 %", "50 %")),
    (8192, ("25 %", "50 %")),
    (6144, ("25 %", "50 %")),
    (2048, ("50 %", "1:8", "1:32")),
)
IN_THE_CACHE = 2048
"""The side of the matrix that stays in the cache of the measured machine."""
FORMS = {
    "anywhere, half": Pattern(0.5),
    "anywhere, a quarter": Pattern(0.25),
    **{text: Pattern.parse(text) for text in ("2:4", "1:8", "1:16")},
}
VALUES = ("fp32", "fp16", "int8")


def bits() -> str:
    """Return the bits that a weight takes by pattern and kind of value, counted on the stored tensors of a matrix."""
    rows, columns = 16, 1024
    lines = [f"| form | {' | '.join(VALUES)} |", f"|---{'|---' * len(VALUES)}|"]
    for name, pattern in FORMS.items():
        cells = []
        for values in VALUES:
            held = SparseMatrix(rows, columns, pattern.kept(rows * columns), values, pattern.n, pattern.m)
            parts = [part for part in (held.bits, held.places, held.values) if part is not None]
            size = 8 * sum(part.numel() * part.element_size() for part in parts) / (rows * columns)
            cells.append(f"{size:.2f}".rstrip("0").rstrip("."))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def trained() -> str:
    """Return the accuracy after training with 1:16, beside that of SR-STE."""
    lines = ["| 1:16 | accuracy | against `sr-ste` |", "|---|---|---|"]
    for name, said in TRAINED.items():
        row = read("sparsity_training")["results"]["summary"]["cnn"][name]
        beside = row.get("against sr-ste")
        itself = name == "dense" or beside == [0.0, 0.0, 0.0]
        against = "" if itself else f"{beside[0]:.3f} [{beside[1]:.3f}, {beside[2]:.3f}]"
        lines.append(f"| {said} | {row['mean']:.3f} | {against} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def kernel(result: str = "sparsity_kernel") -> str:
    """Return the speed over the quickest dense int8 layer, by matrix, pattern and rows of inputs."""
    found: dict[tuple[int, str, int], dict[str, Any]] = {
        (row["outputs"], row["pattern"], row["rows"]): row for row in read(result)["results"]["rows"]
    }
    lines = ["| matrix | kept | stored, of dense int8 | 1 row | 4 rows | 16 rows |", "|---|---|---|---|---|---|"]
    for side, patterns in MATRICES:
        for pattern in patterns:
            one, *more = (found.get((side, pattern, rows)) for rows in (1, 4, 16))
            if one is None:
                continue
            middle, low, high = one["faster than"][one["best"]]
            cells = " | ".join("" if row is None else f"{row['faster than'][row['best']][0]:.2f}" for row in more)
            place = " (in the cache)" if side == IN_THE_CACHE else ""
            lines.append(
                f"| {side} x {side}{place} | {pattern} | {one['stored of dense int8']:.2f} "
                f"| {middle:.2f} [{low:.2f}, {high:.2f}] | {cells} |"
            )
    return "\n".join(lines) + "\n"


def protected() -> str:
    """Return what is missed and falsely found of the protected class, beside the class-blind network's threshold."""
    if not measured("sparsity_protected"):
        return "No figures are committed yet.\n"
    found = read("sparsity_protected")["results"]["summary"]
    lines = [
        "| | area under the curve | missed | false finds | missed, against the threshold moved |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        against = row.get("missed against control")
        said = "" if against is None else "{:+.1%} [{:+.1%}, {:+.1%}]".format(*against)
        lines.append(f"| {name} | {row['auc']:.4f} | {row['missed']:.1%} | {row['false']:.2%} | {said} |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def joint() -> str:
    """Return what three restorations cost apart, shared, and with a difference each."""
    found = read("adapt_joint")["results"]["summary"] if measured("adapt_joint") else {}
    if not found:
        return "No figures are committed yet.\n"
    rank = f"{100 * found['added']:.1f} %"
    ways = {
        "shared": ("one model for all three", "0 %"),
        "apart": ("a model each", "100 %"),
        "joint": ("`instruct-ipt`, base and differences trained in one run", rank),
        "frozen": ("low-rank corrections of the shared model, which stays", rank),
    }
    lines = ["| | PSNR, dB | against one model for all | a further task adds, of the weights |", "|---|---|---|---|"]
    for name, (said, added) in ways.items():
        gap = found.get(f"{name} against shared")
        against = "" if gap is None else f"{gap['difference']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]"
        lines.append(f"| {said} | {found[name]:.2f} | {against} | {added} |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def slimmer(study: str, metric: str) -> str:
    """Return what a committed study gave, dearest recipes first: the metric beside the model before, and its cost."""
    file = RESULTS / study / "frontier.csv"
    if not file.is_file():
        return "No figures are committed yet.\n"
    rows = list(csv.DictReader(file.open()))
    before = float(rows[0][f"{metric}_reference"])
    lines = [
        f"| recipe | stored bytes | multiply-adds | {metric} | against {before:.3f} | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -float(row["stored_bytes_share"])):
        gap = [float(row[f"{metric}_difference{end}"]) for end in ("", "_low", "_high")]
        lines.append(
            f"| {row['recipe']} | {float(row['stored_bytes_share']):.1%} | {float(row['macs_share']):.1%} "
            f"| {float(row[metric]):.3f} | {gap[0]:+.4f} [{gap[1]:+.4f}, {gap[2]:+.4f}] | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


TABLES = {
    "sparse-bits": bits, "sparse-training": trained, "sparse-kernel": kernel,
    "sparse-kernel-emerald": lambda: kernel("sparsity_kernel_emerald_rapids"), "protected": protected, "joint": joint,
    "slimmer-cnn": lambda: slimmer("slimmer-cnn", "accuracy"),
    "slimmer-clicks": lambda: slimmer("slimmer-clicks", "auc"),
}  # fmt: skip
GUIDE = Guide("sparsity", TABLES)

if __name__ == "__main__":
    GUIDE.write()
