"""Records that vouch for themselves: a digest of each record and of the outcomes it was judged by.

Damage and edits are found when a study is resumed (what is damaged is made again) and when it is reported (it is
refused). A published study may leave its outcomes out as a whole; it may not leave out or change some of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lessen.errors import DataError, TaskError
from lessen.files import sha256
from lessen.frontier.records import REFERENCE, StudyRecords, number, outcome_path
from lessen.frontier.seal import DIGEST, is_changed
from lessen.metrics import Metric
from lessen.metrics.storage import UNITS

EVIDENCE = "evidence"
TOLERANCE = 1e-9
"""Relative difference between a recorded figure and the one that its outcomes give again."""


def evidence_of(root: Path, recipe: str, seed: int, judges: Iterable[str] = ("",)) -> dict[str, str]:
    """Return the SHA-256 of each outcome file of a model and of its units, by path inside the study."""
    found = {}
    for judge in judges:
        path = outcome_path(root, recipe, seed, judge)
        for file in (path, path.parent / UNITS):
            if file.is_file():
                found[file.relative_to(root).as_posix()] = sha256(file)
    return dict(sorted(found.items()))


def fault_of(record: Mapping[str, Any], root: Path | None) -> str:
    """Return what was changed of a record or of its outcomes since it was written, or an empty string.

    Records of versions that wrote neither digest nor evidence are taken as they are.
    """
    if is_changed(record) or (EVIDENCE in record and DIGEST not in record):
        return "the record was changed after it was written"
    if root is None or not (root / "outcomes").is_dir():
        return ""
    for name, expected in (record.get(EVIDENCE) or {}).items():
        path = root / str(name)
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != expected:
            return f"{name} was changed after it was written"
    return ""


def check_evidence(study: StudyRecords, where: str) -> None:
    """Refuse a study whose records or outcomes were changed. Raises DataError naming the first."""
    for record in study.records:
        fault = fault_of(record, study.folder)
        if fault:
            raise DataError(
                f"{where}: recipe {record.get('recipe')!r}, seed {record.get('seed')}: {fault}; make it again with "
                "lessen run --resume"
            )


def check_figures(study: StudyRecords, metrics: Mapping[str, Metric], judges: Mapping[str, str]) -> None:
    """Compute recorded figures again from their outcomes.

    Args:
        judges: by a metric's name, the judge whose outcomes it reads; the task's own read "".

    Raises:
        DataError: a figure of a model or of its reference is not what its outcomes give.
    """
    for record in study.records:
        if record.get("status") != "ok" or EVIDENCE not in record:
            continue
        recipe, seed = str(record["recipe"]), int(record["seed"])
        reference = (record.get("reference") or {}).get("quality") or {}
        for name, quality in ((recipe, record.get("quality") or {}), (REFERENCE, reference)):
            for metric, value in quality.items():
                _check_figure(study, name, seed, metrics.get(metric), metric, number(value), judges.get(metric, ""))


def _check_figure(
    study: StudyRecords, recipe: str, seed: int, metric: Metric | None, name: str, value: float | None, judge: str
) -> None:
    outcomes = study.outcomes(recipe, seed, judge)
    if outcomes is None or value is None:
        return
    try:
        kept = study.jackknife(name, recipe, seed, judge)
        again = [*([] if kept is None else [float(kept[0])]), *([] if metric is None else [metric(outcomes)])]
    except TaskError:
        return  # the frontier says why it cannot be judged
    for found in again:
        if not math.isclose(found, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise DataError(
                f"{study.folder}: {name} of {recipe!r}, seed {seed}, is recorded as {value:.6g}, but its outcomes give "
                f"{found:.6g}; make it again with lessen run --resume"
            )
