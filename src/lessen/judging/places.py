"""The places of a study's report cards: <study>/cards/<recipe>-<seed>/card.html, linked from its frontier page."""

from __future__ import annotations

import os
from pathlib import Path

from lessen.frontier import Frontier
from lessen.frontier.records import file_name

FOLDER, PAGE = "cards", "card.html"


def place_of(study: Path, recipe: str, seed: int) -> Path:
    """Return the folder of a card in a study."""
    return study / FOLDER / f"{file_name(recipe)}-{seed}"


def links(frontier: Frontier, out: Path) -> dict[str, str]:
    """Return where the card of each recipe lies, as seen from `out`; the lowest seed that has one."""
    found: dict[str, str] = {}
    folders = {study.name: study.folder for study in frontier.studies if study.folder is not None}
    for point in frontier:
        folder = folders.get(point.study)
        for seed in sorted(point.seeds):
            path = place_of(folder, point.recipe, seed) / PAGE if folder is not None else None
            if path is not None and path.is_file():
                found.setdefault(point.label, Path(os.path.relpath(path, out)).as_posix())
    return found
