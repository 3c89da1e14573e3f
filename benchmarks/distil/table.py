"""Writes the tables and the picture of docs/distil.md from the committed results: python -m benchmarks.distil.table"""

from __future__ import annotations

import csv
from typing import Any

from benchmarks.guides import RESULTS, ROOT, Guide, measured, read

ROWS = {
    "whole": "SmolLM2-135M, thirty layers",
    "whole, 4 bits": "the same, `rtn:bits=4,group=128`",
    "cut": "ten layers, not trained",
    "labels alone": "ten layers, trained on the text alone",
    "forward kl": "ten layers, trained with the teacher",
    "forward kl, 4 bits": "the same, `rtn:bits=4,group=128`",
}


def smollm2() -> str:
    """Return perplexity, bytes and the part of the gap that training closed."""
    if not measured("distil_smollm2"):
        return "No figures are committed yet.\n"
    found = read("distil_smollm2")["results"]
    lines = ["| | perplexity | MB | of the gap, in logarithms | minutes of one core |", "|---|---|---|---|---|"]
    for name, said in ROWS.items():
        row = found[name]
        closed = f"{100 * row['gap closed']:.0f} %" if "gap closed" in row and not name.startswith("whole") else ""
        minutes = f"{row['processor seconds'] / 60:.0f}" if "processor seconds" in row else ""
        lines.append(f"| {said} | {row['perplexity']:,.1f} | {row['bytes'] / 1e6:.1f} | {closed} | {minutes} |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def families() -> str:
    """Return the accuracy of every method for each pair of architectures, and its difference to `kd`."""
    found = read("distil_families")["results"]
    pairs = found["against kd"]
    lines = ["| | " + " | ".join(f"{pair}, {len(found['rows'][pair])} seeds" for pair in pairs) + " |"]
    lines.append("|---" * (len(pairs) + 1) + "|")
    for name in next(iter(pairs.values())):
        cells = [_against(rows[name], alone=name in ("kd", "teacher")) for rows in pairs.values()]
        lines.append(f"| {_family(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def studies() -> str:
    """Return what each method of the committed studies gains or loses against training without a teacher."""
    lines = ["| study | recipe | without a teacher | change, 95 % | seeds |", "|---|---|---|---|---|"]
    for folder in sorted(RESULTS.glob("distil-*")):
        with (folder / "frontier.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                metric = next(name for name in ("accuracy", "auc", "perplexity") if f"{name}_difference" in row)
                change, low, high = (float(row[f"{metric}_difference{end}"]) for end in ("", "_low", "_high"))
                cells = f"{metric} {float(row[f'{metric}_reference']):.3f} | {change:+.4f} [{low:.4f}, {high:.4f}]"
                lines.append(f"| `{row['study']}` | {row['recipe']} | {cells} | {row['seeds']} |")
    return "\n".join(lines) + "\n"


def _family(name: str) -> str:
    said = {"ofa": "`ofa-kd`", "ofa 1.5": "`ofa-kd:exponent=1.5`", "teacher": "teacher", "no teacher": "no teacher"}
    return said.get(name, f"`{name}`")


def _against(row: dict[str, float], alone: bool = False) -> str:
    if alone:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f}, {row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def weak() -> str:
    """Return, for each kind of weak teacher, accuracies and the share of the gap that its student recovered."""
    found = read("distil_weak")["results"]
    settings = [name for name in found if name != "rows"]
    lines = ["| | " + " | ".join(f"{name}, {len(found['rows'][name])} seeds" for name in settings) + " |"]
    lines.append("|---" * (len(settings) + 1) + "|")
    for name in ("teacher", "with labels"):
        cells = [f"accuracy {found[setting]['accuracy'][name]['mean']:.3f}" for setting in settings]
        lines.append(f"| {'trained with labels' if name != 'teacher' else name} | " + " | ".join(cells) + " |")
    for name in found[settings[0]]["gap recovered, against kd"]:
        rows = [found[setting]["gap recovered, against kd"][name] for setting in settings]
        lines.append(f"| {name} | " + " | ".join(_against(row, alone=name == "kd") for row in rows) + " |")
    return "\n".join(lines) + "\n"


def losses() -> str:
    """Return the student's loss and its divergence from the teacher under every loss of language distillation."""
    found = read("distil_losses")["results"]["against forward kl"]
    lines = ["| | nats a token | divergence from the teacher |", "|---|---|---|"]
    for name, row in found["loss"].items():
        cells = [_against(one, alone=name == "forward kl") for one in (row, found["divergence"][name])]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def missing() -> str:
    """Return the score with all inputs, without one, and without both, beside plain training."""
    lines = []
    for study, metric in (("digits with hints", "accuracy"), ("clicks", "AUC")):
        found = read("distil_missing")["results"][study]
        kinds = list(next(iter(found["table"].values())))
        lines += [f"| {study}, {metric} | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
        for name, row in found["table"].items():
            lines.append(f"| {name} | " + " | ".join(_beside(row[kind], name == "plain") for kind in kinds) + " |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _beside(cell: dict[str, float], plain: bool) -> str:
    if plain:
        return f"{cell['mean']:.3f}"
    return f"{cell['mean']:.3f} ({cell['minus plain']:+.3f} ± {cell['standard error of that']:.3f})"


def picture() -> None:
    """Draw quality against the inputs that are skipped, one panel a study, into docs/images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found: dict[str, Any] = read("distil_missing")["results"]
    figure, panels = pyplot.subplots(1, len(found), figsize=(9, 3.4))
    for panel, (study, result) in zip(panels, found.items(), strict=True):
        for marker, (name, row) in zip("o^s", result["table"].items(), strict=True):
            some = [cell["mean"] for kind, cell in row.items() if kind not in ("all", "none")]
            means = [row["all"]["mean"], sum(some) / len(some), row["none"]["mean"]]
            panel.plot(range(3), means, marker=marker, label=name)
        panel.set(
            title=study, xlabel="inputs skipped", xticks=range(3), ylabel="AUC" if study == "clicks" else "accuracy"
        )
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / "inputs_skipped.png", dpi=110)


GUIDE = Guide(
    "distil",
    {"smollm2": smollm2, "families": families, "weak": weak, "losses": losses, "missing": missing, "studies": studies},
)

if __name__ == "__main__":
    GUIDE.write()
    picture()
