"""Reading the folder that a study wrote: measurements, outcomes, noise floor, baselines, notes - all of it checked.

<out>/study.yaml              resolved study; `margin` and `budget` are read here
<out>/measurements.jsonl      one object per (recipe, seed)
<out>/outcomes/<recipe>-<seed>.safetensors      what happened on each test unit; "reference" is the uncompressed model
<out>/outcomes/<judge>/                         the same under a judge beside the task
<out>/predictions/<recipe>-<seed>.safetensors   of earlier versions: tensor "scores"; "targets" in targets.safetensors
<out>/noise.json              A/A run: latency_ratio, latency_ratio_ci, quality {metric: [low, high]}
<out>/baselines.json          {name: {metric: value, metric_ci: [low, high]}}
<out>/notes.json              {notes: statements of the task, such as how many test users are new; study: digest of
                             study.yaml}; earlier a bare list
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lessen.errors import ArtifactError, DataError, LessenError
from lessen.files import digest, parse_json, parse_yaml, read_checked, read_text
from lessen.frontier.seal import is_changed, unsealed
from lessen.metrics import Floats, Outcomes
from lessen.metrics.storage import load_arrays, read_jackknife, read_outcomes

REFERENCE = "reference"
REQUIRED = ("study", "task", "recipe", "recipe_hash", "seed", "status")
NUMBERS = ("quality", "cost")
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class StudyRecords:
    """What one study measured. `folder` is None for records made in memory, which have no outcomes."""

    records: list[dict[str, Any]]
    folder: Path | None = None
    study: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the study, as its records give it."""
        return str(self.records[0]["study"])

    @property
    def task_name(self) -> str:
        """Name of the task and, if there are any, its options."""
        return task_name(self.records[0]["task"])

    @property
    def fingerprint(self) -> str:
        """Digest of the validation and test splits that the figures hold for."""
        return str(self.records[0].get("data_fingerprint", ""))

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """What the records say of each metric; empty in those of earlier versions."""
        found = self.records[0].get("metrics")
        return found if isinstance(found, Mapping) else {}

    def outcomes(self, recipe: str, seed: int, judge: str = "") -> Outcomes | None:
        """Return what happened on each test unit under a recipe, or None where that was not kept.

        Args:
            judge: name of a judge beside the task; the task's own units by default.

        Raises:
            DataError: a file is damaged, or made on other units than the rest.
        """
        if self.folder is None:
            return None
        found = read_outcomes(outcome_path(self.folder, recipe, seed, judge))
        return found if found is not None or judge else _predictions(self.folder, recipe, seed)

    def jackknife(self, metric: str, recipe: str, seed: int, judge: str = "") -> Floats | None:
        """Return a metric on all test units and without each group of them, or None where that was not kept.

        Args:
            metric: as the records call it, the name of a judge beside the task in front.

        Raises:
            DataError: a file is damaged, or made on other units than the rest.
        """
        if self.folder is None:
            return None
        name = metric.removeprefix(f"{judge}.") if judge else metric
        return read_jackknife(outcome_path(self.folder, recipe, seed, judge)).get(name)


def file_name(recipe: str) -> str:
    """Return the name of a recipe's files; a name is never used as a path."""
    safe = "".join(letter if letter.isalnum() or letter in "+-_.=" else "_" for letter in recipe).lstrip(".")
    return safe[:150]


def outcome_path(folder: Path, recipe: str, seed: int, judge: str = "") -> Path:
    """Return where the outcomes of one recipe and seed are kept; those of a judge beside the task in its own folder."""
    place = folder / "outcomes" / file_name(judge) if judge else folder / "outcomes"
    return place / f"{file_name(recipe)}-{seed}.safetensors"


def task_name(task: Any) -> str:
    """Return `name (option=value, ...)` of a task description, which is a string or a mapping."""
    if not isinstance(task, Mapping):
        return str(task)
    options = ", ".join(f"{key}={value}" for key, value in sorted(task.items()) if key != "name")
    return f"{task.get('name', '?')} ({options})" if options else str(task.get("name", "?"))


def load_study(folder: Path | str) -> StudyRecords:
    """Read one study folder.

    Raises:
        DataError: no measurements, a damaged line, a missing key, figures of different data in one folder, or a file
            beside them that was changed.
    """
    folder = Path(folder)
    records = check_records(_measurements(folder / "measurements.jsonl"), str(folder))
    notes = _beside(folder / "notes.json")
    said, notes = (notes.get("study"), notes.get("notes")) if isinstance(notes, dict) else (None, notes)
    resolved = folder / "study.yaml"
    study = parse_yaml(read_text(resolved, "study"), str(resolved)) if resolved.exists() else {}
    if not isinstance(study, Mapping):
        raise DataError(f"{resolved} holds no settings by name; copy it again, or remove it: the report says so then")
    noise = _mapping(folder / "noise.json")
    if not isinstance(noise.get("quality") or {}, Mapping):
        raise DataError(f"{folder / 'noise.json'}: quality must be an object of intervals; resume the study")
    return StudyRecords(
        records,
        folder,
        study,
        noise,
        _mapping(folder / "baselines.json"),
        (
            *(str(note) for note in (notes if isinstance(notes, list) else ())),
            *_gaps(records, resolved, said),
            *_missing(records, study),
        ),
    )


def _gaps(records: list[dict[str, Any]], resolved: Path, said: object) -> list[str]:
    """Return, in words, what a reader would take for granted and this folder does not hold.

    Args:
        said: digest of the settings that were measured, where the folder holds one.
    """
    found = []
    if not resolved.exists():
        found.append(
            f"{resolved.name} does not stand beside the measurements: the margin is not that of the study, and its "
            "budget is not judged"
        )
    elif said is not None and digest(read_checked(resolved)) != said:
        found.append(
            f"{resolved.name} was changed after the study was run; verdicts are by the margin and the budget that it "
            "holds now"
        )
    for record in records:
        costs = record.get("cost") or {}
        if record["status"] == "ok" and not any(number(value) is not None for value in costs.values()):
            found.append(
                f"{record['recipe']}, seed {record['seed']}: the record holds no cost, what was saved is unknown"
            )
    return found


def _missing(records: list[dict[str, Any]], study: Mapping[str, Any]) -> list[str]:
    """Return, in words, the runs that the study names and that have no record."""
    recipes, seeds = study.get("recipes"), study.get("seeds")
    if not isinstance(recipes, list) or not isinstance(seeds, list):
        return []
    names = [str(recipe.get("name")) for recipe in recipes if isinstance(recipe, Mapping)]
    known = {(str(record["recipe"]), record["seed"]) for record in records}
    left = [f"{name} seed {seed}" for name in names for seed in seeds if (name, seed) not in known]
    if not left:
        return []
    shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
    return [f"{len(left)} of {len(names) * len(seeds)} runs of study.yaml have no measurement here: {shown}"]


def check_records(records: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return `records` if they can be compared with each other; the last of two with one recipe and seed counts.

    Raises:
        DataError: none, a key missing, or records of different tasks or test data.
    """
    if not records:
        raise DataError(f"{where} holds no measurement; run the study first: lessen run STUDY.yaml --out {where}")
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for number, record in enumerate(records, 1):
        _check_record(record, f"{where}: measurement {number}")
        latest[(str(record["recipe_hash"]) + str(record["recipe"]), int(record["seed"]))] = record
    for key, says in (("task", task_name), ("data_fingerprint", str)):
        values = sorted({says(record.get(key, "")) for record in latest.values()})
        if len(values) > 1:
            raise DataError(
                f"{where} mixes measurements of different {key.replace('_', ' ')} ({values[0][:60]} and "
                f"{values[1][:60]}); they cannot be compared: run each in its own folder"
            )
    return list(latest.values())


def number(value: Any) -> float | None:
    """Return `value` as a finite float, or None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: Any) -> tuple[float, float] | None:
    """Return `value` as (low, high), or None if it is not a pair of finite numbers."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _check_record(record: Any, where: str) -> None:
    if not isinstance(record, dict):
        raise DataError(f"{where} is no JSON object; remove that line or run the study again")
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; it was not written by a lessen study of this version")
    if number(record["seed"]) is None:
        raise DataError(f"{where}: seed = {record['seed']!r} is no number")
    for key in NUMBERS:
        if not isinstance(record.get(key) or {}, dict):
            raise DataError(f"{where}: {key} must be an object of numbers")
    if not isinstance(record.get("reference") or {}, dict) or not isinstance(record.get("steps") or [], list):
        raise DataError(f"{where}: reference must be an object and steps a list")


def _measurements(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise DataError(f"{path.parent} holds no measurements.jsonl; give a folder that `lessen run` wrote to")
    lines = _read(path).splitlines(keepends=True)
    found = []
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(parse_json(line, f"{path}: line {count}"))
        except ArtifactError as error:
            if count == len(lines) and not line.endswith(b"\n"):  # a study writes this file whole or not at all
                raise DataError(f"{path} is cut inside line {count}; copy it again, or resume the study") from error
            raise DataError(f"{error}; remove that line and resume the study") from error
    return found


def _read(path: Path) -> bytes:
    try:
        return read_checked(path, limit=MAX_BYTES)
    except ArtifactError as error:
        raise DataError(str(error)) from error


def _optional_json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return parse_json(_read(path), str(path))
    except ArtifactError as error:
        raise DataError(str(error)) from error


def _beside(path: Path) -> Any:
    """Return what a file beside the measurements holds. Raises DataError: it is not what its digest says."""
    value = _optional_json(path)
    if not isinstance(value, dict):
        return value
    if is_changed(value):
        raise DataError(f"{path} was changed after it was written; make it again with lessen run --resume")
    return unsealed(value)


def _mapping(path: Path) -> dict[str, Any]:
    value = _beside(path)
    return value if isinstance(value, dict) else {}


def _predictions(folder: Path, recipe: str, seed: int) -> Outcomes | None:
    """Return what a study of an earlier version kept: scores of each model, and the targets once."""
    scores = folder / "predictions" / f"{file_name(recipe)}-{seed}.safetensors"
    targets = folder / "predictions" / "targets.safetensors"
    if not (scores.is_file() and targets.is_file()):
        return None
    columns = {}
    for column, path, name in (("score", scores, "scores"), ("target", targets, "targets")):
        arrays = load_arrays(path)
        if name not in arrays:
            raise DataError(f"{path} holds no tensor {name!r}; remove it and resume the study")
        columns[column] = arrays[name]
    try:
        return Outcomes(columns)
    except LessenError as error:
        raise DataError(f"{scores}: {error}; remove it and resume the study") from error
