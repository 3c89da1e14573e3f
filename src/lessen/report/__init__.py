"""Reports: one frontier as a page, a picture, a Markdown twin and a CSV, all regenerated from the study's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lessen.files import atomic_write
from lessen.frontier import Frontier
from lessen.judging.places import links
from lessen.report.markdown import markdown
from lessen.report.page import page
from lessen.report.plot import picture
from lessen.report.table import csv_text

FILES: dict[str, Callable[[Frontier, Path], bytes | str]] = {
    "frontier.csv": lambda frontier, _: csv_text(frontier),
    "frontier.png": lambda frontier, _: picture(frontier, "png"),
    "frontier.svg": lambda frontier, _: picture(frontier, "svg"),
    "frontier.md": lambda frontier, _: markdown(frontier),
    "frontier.html": lambda frontier, out: page(frontier, links(frontier, out)),
}


def write(
    out: Path | str,
    folders: Sequence[Path | str] = (),
    *,
    margin: float | None = None,
    gates: str | Sequence[str] | None = None,
) -> Frontier:
    """Write frontier.csv, .png, .svg, .md and .html into `out` and return what they show.

    Args:
        out: where the files go; also the study that is read if no other folder is given.
        folders: studies to join; they must have judged the same task on the same data.
        margin: largest acceptable loss of the first metric; default the study's own.
        gates: budget lines, such as `"stored_bytes<=0.1x, auc>=-0.001"`; default the study's own.

    Raises:
        DataError: no measurements, damaged files, or studies that cannot be compared.
        OutputError: `out` cannot be written.
    """
    frontier = Frontier.load(*(folders or [out]), margin=margin, gates=gates)
    write_frontier(frontier, out)
    return frontier


def write_frontier(frontier: Frontier, out: Path | str) -> list[Path]:
    """Write the report of a frontier that is already in memory and return the files."""
    written = []
    for name, make in FILES.items():
        path = Path(out) / name
        atomic_write(path, make(frontier, Path(out)))
        written.append(path)
    return written
