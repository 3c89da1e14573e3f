"""A study in parts: several kinds of model, each judged in its own way, in one file, one folder and one page.

study: one-frontier
seeds: [0, 1]                      what every part takes unless it says otherwise
parts:
  - study: language                a study file as any other, run in <out>/language
    task: language-tiny
    recipes: [...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen import files
from lessen.errors import ConfigError, OutputError, nearest
from lessen.log import SILENT, Log
from lessen.study.folder import STUDY, StudyFolder
from lessen.study.run import StudyResult
from lessen.study.schema import Study, named, slug

SHARED = ("seeds", "threads", "measure", "device")
KEYS = ("study", "parts", *SHARED)


@dataclass(frozen=True)
class Parts:
    """Studies of several tasks under one name."""

    name: str
    studies: Sequence[Study]

    @classmethod
    def parse(cls, value: Mapping[Any, Any], where: str, log: Log = SILENT) -> Parts:
        """Build every part from the YAML form, checked as a whole before anything runs. Raises ConfigError."""
        for key in value:
            if key not in KEYS:
                raise ConfigError(f"{where}: a study in parts has no key {key!r}; {nearest(str(key), KEYS)}")
        parts = value["parts"]
        if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
            raise ConfigError(f"{where}: parts must be a list of studies, at least one")
        shared = {key: value[key] for key in SHARED if key in value}
        studies = [Study.parse({**shared, **part}, f"{where}: part {at}", log) for at, part in enumerate(parts, 1)]
        names = [slug(study.name).casefold() for study in studies]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}: two parts are called {name!r}; give each a name of its own")
        return cls(str(value.get("study", "parts")), studies)

    def describe(self) -> dict[str, Any]:
        """Return the name and the folders of the parts: what a report reads."""
        return {"study": self.name, "parts": [study.name for study in self.studies]}

    def holding(self, only: str | None) -> list[Study]:
        """Return the parts with a recipe whose name matches the glob. Raises ConfigError: there is none."""
        names = [recipe.name for part in self.studies for recipe in part.recipes]
        found = [part for part in self.studies if any(named(recipe.name, only) for recipe in part.recipes)]
        if not found:
            raise ConfigError(f"--only {only!r} matches no recipe of study {self.name!r}; {nearest(only or '', names)}")
        return found

    def open(self, out: Path, *, resume: bool) -> list[Path]:
        """Take the folder `out` for these parts and return one folder for each.

        Raises:
            OutputError: it cannot be written, holds something else, other parts, or these without `resume`.
        """
        path = out / STUDY
        held = {item.name for item in out.iterdir()} if out.is_dir() else set()
        if held and not path.is_file():
            raise OutputError(f"{out} holds other files and no study; choose another --out")
        if held and files.parse_yaml(files.read_text(path, "study"), str(path)) != self.describe():
            raise OutputError(f"{out} holds a different study; choose another --out or remove it")
        if held and not resume:
            raise OutputError(f"{out} already holds this study; add --resume to continue it or choose another --out")
        files.atomic_write(path, files.dump_yaml(self.describe()))
        return [out / slug(study.name) for study in self.studies]


def unfinished(part: Study, place: Path) -> StudyResult:
    """Return what is there of a part that is not run now."""
    found = [StudyFolder(place).finished(recipe.name, recipe.hash, seed) for recipe, seed in part.runs()]
    records = [record for record in found if record is not None]
    return StudyResult(place, records, len(found) - len(records))


def load(path: Path, log: Log = SILENT) -> Study | Parts:
    """Read a study file of either form. Raises ConfigError naming file, key and what is allowed."""
    value = files.parse_yaml(files.read_text(path, "study"), str(path))
    if isinstance(value, Mapping) and "parts" in value:
        return Parts.parse(value, str(path), log)
    return Study.parse(value, str(path), log)


def parts_of(out: Path) -> tuple[str, dict[str, Path]] | None:
    """Return the name of the study in parts that lies in `out` and the folder of each part, or None."""
    path = out / STUDY
    if not path.is_file():
        return None
    value = files.parse_yaml(files.read_text(path, "study"), str(path))
    parts = value.get("parts") if isinstance(value, Mapping) else None
    if not isinstance(parts, list):
        return None
    return str(value["study"]), {str(name): out / slug(str(name)) for name in parts}
