"""Asking suites about two models: one section a suite, and one line for each that had no answer.

reference --outcomes--.
                       +--> suite.compare --> Section         suites of the task's own outcomes share one pass a model
compact   --outcomes--'
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lessen import files
from lessen.environment import environment
from lessen.errors import ArtifactError, ConfigError, DataError, TaskError
from lessen.judges import get_judge, suites
from lessen.judges.suite import CannotAnswer, Section, Suite, Table, compared
from lessen.log import SILENT, Log
from lessen.methods.replaced import called
from lessen.metrics import Outcomes
from lessen.task import Judge, Split, Task
from lessen.train.teachers import evaluating
from lessen.usercode import guarded

FILE = "card.json"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What all suites found of one compact model."""

    title: str
    task: str
    fingerprint: str
    sections: tuple[Section, ...]
    unanswered: tuple[str, ...]
    """Why suites had no answer, one line each."""
    env: dict[str, Any]

    @property
    def caught(self) -> list[tuple[str, str]]:
        """Every fault that was proved: the suite and the sentence."""
        return [(section.name, fault) for section in self.sections for fault in section.caught]

    def record(self) -> dict[str, Any]:
        """Return the card as JSON values."""
        return {
            "format": FORMAT,
            "title": self.title,
            "task": self.task,
            "data_fingerprint": self.fingerprint,
            "sections": [section.record() for section in self.sections],
            "unanswered": list(self.unanswered),
            "env": self.env,
        }


def judge_models(
    reference: nn.Module,
    compact: nn.Module,
    task: Task,
    suite: Sequence[Any] = (),
    *,
    title: str = "compact model",
    threads: int = 1,
    log: Log = SILENT,
) -> Card:
    """Ask suites about a compact model and its uncompressed one, and return the card.

    Args:
        suite: suites and judges, or their names or `{name: ..., option: value}`; none: those that are always asked, of
            which the ones without an answer are listed and no error.

    Raises:
        ConfigError: no such suite, or an option that it does not have.
        CannotAnswer: a suite that was named has no answer for this model or task.
    """
    shared = _shared(task, {id(reference), id(compact)})
    named = bool(suite)
    asked = list(suite) or [name for name, cls in suites().items() if cls.always]
    judges = [each if isinstance(each, Judge) else get_judge(each, "--suite", own=True, task=task) for each in asked]
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"suite {name!r} is named twice; name each once")
    sections, unanswered = [], []
    for judge in judges:
        start = time.perf_counter()
        try:
            sections.append(_asked(judge, reference, compact, task, shared))
        except TaskError as error:
            if named:
                raise
            said = str(error)
            unanswered.append(said if isinstance(error, CannotAnswer) else f"suite {judge.name!r}: {said}")
        else:
            log.note(f"suite {judge.name}: {time.perf_counter() - start:.1f} s")
    if not sections:
        raise TaskError(f"no suite had an answer: {unanswered[0] if unanswered else 'none was asked'}")
    return Card(title, task.name, task.fingerprint(), tuple(sections), tuple(unanswered), environment(threads))


def _asked(judge: Judge, reference: nn.Module, compact: nn.Module, task: Task, shared: Task) -> Section:
    with guarded(judge, f"suite {judge.name!r} failed; its code raised"):
        if isinstance(judge, Suite):
            judge.lend(task, shared)
            why = judge.unable(reference) or judge.unable(compact)
            if why:
                raise judge.refuse(why)
        _check_called(judge, task, shared, (reference, compact))
        before, after = judge.outcomes(reference), judge.outcomes(compact)
        for found in (before, after):
            if not isinstance(found, Outcomes):
                raise TaskError(
                    f"suite {judge.name!r}: outcomes must return lessen.metrics.Outcomes, not {_kind(found)}"
                )
        section = judge.compare(before, after) if isinstance(judge, Suite) else compared(judge, before, after)
    check_section(section, judge.name)
    return section


def _check_called(judge: Judge, task: Task, shared: Task, models: Sequence[nn.Module]) -> None:
    """Refuse models that the data of another task than theirs cannot be given to. Raises InputError."""
    other = judge if isinstance(judge, Task) else getattr(judge, "task", None)
    if isinstance(other, Task) and other is not task and other is not shared:
        for model in models:
            with evaluating(model):
                called(model, other)


def check_section(section: Any, name: str) -> None:
    """Refuse what a page cannot show and a file cannot hold. Raises TaskError naming the suite and the part."""
    if not isinstance(section, Section):
        raise TaskError(f"suite {name!r}: compare must return a lessen.judges.suite.Section, not {_kind(section)}")
    for part in ("caught", "lines"):
        said = getattr(section, part)
        if isinstance(said, str) or not _all(said, str):
            raise TaskError(f"suite {name!r}: `{part}` of its Section must be a tuple of texts")
    if not _all(section.tables, Table):
        raise TaskError(f"suite {name!r}: `tables` of its Section must be a tuple of lessen.judges.suite.Table")
    for found in section.tables:
        if not _all(found.columns, str) or not all(
            _all(row, str) and len(row) == len(found.columns) for row in found.rows
        ):
            raise TaskError(f"suite {name!r}: rows of a Table must be tuples of texts, one for each of its columns")
    try:
        files.dump_json(dict(section.figures))
    except (TypeError, ValueError) as error:
        raise TaskError(f"suite {name!r}: `figures` of its Section must be JSON values ({error})") from error


def _all(values: Any, kind: type[Any]) -> bool:
    return isinstance(values, (tuple, list)) and all(isinstance(value, kind) for value in values)


def _kind(value: Any) -> str:
    return type(value).__name__


def _shared(task: Task, models: set[int]) -> Task:
    """Return a view of `task` that judges each of `models` once, however many suites ask for its outcomes."""
    kept: dict[tuple[int, str], Outcomes] = {}

    def judged(model: nn.Module, split: Split) -> Outcomes:
        with guarded(task, f"task {task.name!r} cannot judge the model; its code raised"):
            return task.outcomes(model, split)

    def outcomes(model: nn.Module, split: Split = "test") -> Outcomes:
        key = (id(model), split)
        if id(model) not in models:
            return judged(model, split)
        if key not in kept:
            kept[key] = judged(model, split)
        return kept[key]

    return task.view(outcomes=outcomes)


def write_card(card: Card, out: Path) -> Path:
    """Write the card's record into the folder `out` and return its path."""
    files.atomic_write(out / FILE, files.dump_json(files.finite(card.record())))
    return out / FILE


def read_card(path: Path | str) -> Card:
    """Read a card's record. Raises DataError: it is absent, damaged or of another version."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        value = files.parse_json(files.read_checked(path), str(path))
        if value.get("format") != FORMAT:
            raise DataError(
                f"{path} is a card of format {value.get('format')}; this version reads {FORMAT}: judge again"
            )
        sections = tuple(
            Section(
                each["name"],
                each["question"],
                tuple(each["caught"]),
                tuple(each["lines"]),
                tuple(Table(t["title"], tuple(t["columns"]), tuple(map(tuple, t["rows"]))) for t in each["tables"]),
                each["figures"],
            )
            for each in value["sections"]
        )
        return Card(
            value["title"], value["task"], value["data_fingerprint"], sections, tuple(value["unanswered"]), value["env"]
        )
    except (ArtifactError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no report card that can be read ({error}); judge again: lessen judge") from error
