"""Tables of docs/retrieval.md: what methods of this room find beside baselines and controls.

python -m benchmarks.retrieval.table
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.guides import Guide, measured, read

TRAINED_ON = "simplex heads, trained on with the compatible loss"
SWAPS = (
    "as it is", "every second document: turn and 96 directions", "sentences: turn alone",
    "sentences: turn and 96 directions", "sentences, documents, lines: turn and 96 directions",
)  # fmt: skip
SCORERS = {
    "exact top 10 behind the screen": "the ten best, behind the screen",
    "the screen alone": "the int8 screen alone",
    "torch, one document at a time": "torch, one document at a time",
    "torch, padded": "torch, documents padded to one length",
    "maxsim-cpu": "maxsim-cpu 0.1.0",
    "numkong (packed, not certified)": "numkong 7.8.6 (packed; its screen is not proven)",
}
ENCODERS = {
    "encodings of 10,240 numbers": "compiled",
    "the same by torch's operators": "torch's operators",
    "muvera-py": "muvera-py, the common port",
}


def share(found: list[float]) -> str:
    """A mean and its interval."""
    mean, low, high = found
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def change(found: list[float]) -> str:
    """A difference and its interval, with signs."""
    mean, low, high = found
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def rows(head: str, lines: list[str]) -> str:
    """A table of Markdown."""
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *lines]) + "\n"


def compared(name: str, part: str, value: str, over: str, said: str) -> Callable[[], str]:
    """Return what writes the rows of one result: a mean, and the difference from a row that is named."""

    def table() -> str:
        if not measured(name) or part not in read(name):
            return "No figures are committed yet.\n"
        found: dict[str, Any] = read(name)[part]["rows"]
        lines = [f"| {row} | {share(each[value])} | {change(each[over])} |" for row, each in found.items()]
        return rows(said, lines)

    return table


def forms() -> str:
    """Return bytes, recall and time of every form of an index, faiss's among them."""
    lines = [
        f"| {name} | {row['bytes']} | {share([row['recall'], row['low'], row['high']])} | {row['ms_a_query']:.2f} |"
        for name, row in read("retrieval_forms")["forms"].items()
    ]
    return rows("| form | bytes | recall of ten neighbours | processor ms a query |", lines)


def swapped() -> str:
    """Return what another encoder's queries find in the old index, with and without adapters of several pairs."""
    lines = [
        f"| {encoder}: {way} | {row['pairs'] or ''} | {share([row['recall'], row['low'], row['high']])} "
        f"| {row['cosine']:.3f} |".replace("|  |", "| |")
        for encoder, ways in read("retrieval_swap_pairs")["rows"].items()
        for way, row in ways.items()
        if way in SWAPS
    ]
    return rows("| queries of the 4-bit encoder | pairs | of the ten neighbours of float32 | cosine |", lines)


def versions() -> str:
    """Return accuracies between an old and a new model by their heads, means over seeds."""
    found = read("retrieval_classes")["versions"]["rows"]
    said = {
        ("learnable heads", "classes of both"): "learnable, the five classes of both (chance 0.20)",
        ("simplex heads", "classes of both"): "simplex, the five classes of both",
        (TRAINED_ON, "classes of both"): "simplex, trained on with the compatible loss",
        ("learnable heads", "all classes"): "learnable, all ten classes, five of them unknown to the old model",
        ("simplex heads", "all classes"): "simplex, all ten",
        (TRAINED_ON, "all classes"): "simplex, trained on with the compatible loss, all ten",
    }
    lines = []
    for (head, classes), name in said.items():
        seeds = [found[head][f"{classes}: {pair}"] for pair in ("old in old", "new in old", "new in new")]
        lines.append(f"| {name} | {' | '.join(f'{sum(each) / len(each):.3f}' for each in seeds)} |")
    return rows("| head | old queries, old gallery | new queries, old gallery | new queries, new gallery |", lines)


def candidates() -> str:
    """Return how many candidates hold the ten best documents of late interaction, by what proposes them."""
    lines = []
    for name, row in read("retrieval_late")["cranfield"]["rows"].items():
        size = "-" if row["bytes_a_document"] is None else f"{row['bytes_a_document']:,}"
        found = row["of_10_in_100"]
        held = share([found["recall"], found["low"], found["high"]])
        best = row.get("candidates_for_best", {}).get("95%", "")
        ten = f"{row['candidates']['80%']} | {row['candidates']['95%']}"
        lines.append(f"| {name} | {size} | {held} | {ten} | {best} |".replace("|  |", "| |"))
    head = "| candidates come from | bytes a document | of the exact ten best, in 100 candidates "
    return rows(f"{head}| candidates that hold 80 % of the ten | 95 % | 95 % of the best ones |", lines)


def drawn_candidates() -> str:
    """Return how many candidates hold the exact best of drawn sets, and the ten best, by what proposes them."""
    lines = []
    for about, found in read("retrieval_late")["drawn"]["about"].items():
        for name, row in found.items():
            best = " | ".join(str(row["best"][share]) for share in ("80%", "90%", "95%"))
            lines.append(f"| {about} | {name} | {best} | {row['ten best']['90%']:,} |")
    head = "| what the document is about moves its words by | candidates come from | that hold 80 % of the best "
    return rows(f"{head}| 90 % | 95 % | 90 % of the ten best |", lines)


def late_speed() -> str:
    """Return the time of exact scores, and beside it that of encodings."""
    found = read("retrieval_late")["speed"]
    scores = [(said, found["maxsim"][name]["us_a_document"]) for name, said in SCORERS.items()]
    codes = [(said, found["muvera"][name]["us_a_document"]) for name, said in ENCODERS.items()]
    right = [f"{said} | {us:.0f}" for said, us in codes] + [" | "] * (len(scores) - len(codes))
    lines = [f"| {said} | {us:.1f} | | {beside} |" for (said, us), beside in zip(scores, right, strict=True)]
    head = f"| exact scores of {found['documents']:,} documents | us | | an encoding of 10,240 numbers | us |"
    return rows(head, [line.replace("|  |  |", "| | |") for line in lines])


def reranked() -> str:
    """Return the mean average precision before a second look at the neighbours, and its change."""
    lines = [
        f"| {name} | {row['map_before'][0]:.3f} | {change(row['change'])} |"
        for name, row in read("retrieval_classes")["rerank"]["rows"].items()
    ]
    return rows("| vectors | before | change |", lines)


TABLES: dict[str, Callable[[], str]] = {
    "forms": forms,
    "swap": swapped,
    "versions": versions,
    "candidates": candidates,
    "drawn-candidates": drawn_candidates,
    "late-speed": late_speed,
    "rerank": reranked,
    "towers": compared(
        "retrieval_towers", "study", "pck", "over_the_better_tower", "| features | PCK@0.1 | over gradients alone |"
    ),
    "embedded": compared("retrieval_embeddings", "study", "map", "over_softmax", "| loss | map | over softmax |"),
    "spotted": compared("retrieval_spotting", "study", "map", "over_neither", "| terms | map | over neither |"),
    "topics": compared("retrieval_topics", "study", "auc", "over_keywords", "| topics | area | over keywords alone |"),
    **{
        f"{part}-{name}": compared(f"retrieval_{name}", part, value, over, f"| {part} | {value} | {said} |")
        for name, value, over, said in (
            ("changes", "mrr", "mrr over in the batch", "over the same epochs in the batch"),
            ("writing", "recall@1", "recall@1 over ids", "over ids alone"),
        )
        for part in ("drawn", "cranfield")
    },
}
GUIDE = Guide("retrieval", TABLES)


if __name__ == "__main__":
    GUIDE.write()
