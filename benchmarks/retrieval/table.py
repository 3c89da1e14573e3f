"""Tables of docs/retrieval.md: what methods of this room find beside baselines and controls.

python -m benchmarks.retrieval.table
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.guides import Guide, read


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
        found: dict[str, Any] = read(name)[part]["rows"]
        lines = [f"| {row} | {share(each[value])} | {change(each[over])} |" for row, each in found.items()]
        return rows(said, lines)

    return table


def swap() -> str:
    """What a 4-bit encoder finds in the old index."""
    found = read("retrieval_swap")["rows"]
    lines = [
        f"| {encoder}: {way} | {row['pairs'] or '-'} | {share([row['recall'], row['low'], row['high']])} "
        f"| {row['cosine']:.3f} |"
        for encoder, ways in found.items()
        for way, row in ways.items()
    ]
    return rows("| queries of the 4-bit encoder | pairs | of the ten neighbours | cosine |", lines)


def writing() -> str:
    """Ids alone and along paths."""
    found = read("retrieval_writing")["cranfield"]["rows"]
    lines = [
        f"| {row} | {share(each['recall@1'])} | {share(each['recall@10'])} | {each['ms_a_query']:.0f} |"
        for row, each in found.items()
    ]
    return rows("| | recall@1 | recall@10 | processor ms a query |", lines)


TABLES: dict[str, Callable[[], str]] = {
    "swap": swap,
    "towers": compared(
        "retrieval_towers", "study", "pck", "over_the_better_tower", "| features | PCK@0.1 | over gradients alone |"
    ),
    "embeddings": compared(
        "retrieval_embeddings", "study", "map", "over_softmax", "| trained with | mAP | over softmax |"
    ),
    "drawn": compared(
        "retrieval_changes", "drawn", "recall@10", "recall@10 over in the batch",
        "| drawn items | recall@10 | over training on in the batch |",
    ),
    "cranfield": compared(
        "retrieval_changes", "cranfield", "mrr", "mrr over in the batch",
        "| Cranfield | reciprocal rank | over training on in the batch |",
    ),
    "topics": compared(
        "retrieval_topics", "study", "auc", "over_keywords", "| topic | area under the curve | over keywords alone |"
    ),
    "spotting": compared(
        "retrieval_spotting", "study", "map", "over_neither", "| trained with | mAP of words | over neither |"
    ),
    "writing": writing,
}  # fmt: skip
GUIDE = Guide("retrieval", TABLES)


if __name__ == "__main__":
    GUIDE.write()
