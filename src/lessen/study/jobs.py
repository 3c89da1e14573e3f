"""The work of one reference and of one (recipe, seed): top-level functions of picklable items, equal on every engine.

A job pins torch's threads, seeds torch, writes its large results under the output directory and returns small JSON
values. What went wrong comes back as a `Failure`: exceptions do not always survive the way between processes.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen import errors, files
from lessen.architectures.intake import private_copy
from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of
from lessen.artifact.layout import BaseReference
from lessen.artifact.probe import inputs_for
from lessen.errors import ArtifactError, EnvironmentFault, LessenError, MissingExtraError, OutputError
from lessen.frontier.evidence import EVIDENCE, evidence_of, fault_of
from lessen.frontier.records import REFERENCE, outcome_path
from lessen.frontier.seal import sealed
from lessen.judges import get_judge
from lessen.log import SILENT, Log
from lessen.measure.record import difference_deviations, ledger_records, measure_cost, measure_quality
from lessen.method import check_finite
from lessen.methods.rebuilt import check_rebuilt
from lessen.metrics import standards
from lessen.metrics.storage import read_jackknife
from lessen.recipe import Recipe
from lessen.study.folder import StudyFolder, read_json
from lessen.task import Judge, Task
from lessen.tasks import get_task
from lessen.train.device import find_device

LOG: ContextVar[Log] = ContextVar("LOG", default=SILENT)
"""Progress inside a job; set only where the job runs in the process that talks to the user."""

STANDARDS = "standards"
"""What chance gives and what the units resolve, by metric: kept beside the reference, told by every record."""

TaskSource = Task | str
"""A task that was made in Python itself, or the JSON description of any other, which every process builds once."""


JudgeSource = Judge | str


@dataclass(frozen=True)
class Failure:
    """Why a job gave nothing: one line, the name of the error's class, and whether the study cannot go on."""

    message: str
    kind: str = EnvironmentFault.__name__
    fatal: bool = False


@dataclass(frozen=True)
class Job:
    """One seed's reference (the empty recipe), or one recipe applied to it."""

    source: TaskSource
    root: Path
    recipe: Recipe
    seed: int
    threads: int
    judges: tuple[JudgeSource, ...] = ()
    """Judges beside the task."""
    device: str = "cpu"
    """Where models are trained, compressed and judged; what is stored is read back onto it."""


Work = Callable[[Job], "dict[str, Any] | Failure"]
"""One of the top-level functions below."""


def source_of(task: Task) -> TaskSource:
    """Return what a job needs to get `task` in another process."""
    description = task.origin or (task.describe() if task.Options is not None else None)
    return task if description is None else json.dumps(dict(description), sort_keys=True)


def judge_source_of(judge: Judge) -> JudgeSource:
    """Return what a job needs to get `judge` in another process."""
    if isinstance(judge, Task):
        return source_of(judge)
    return judge if judge.origin is None else json.dumps(dict(judge.origin), sort_keys=True)


def task_of(source: TaskSource) -> Task:
    """Return the task of a job; built-in ones are read once a process."""
    return _described(source) if isinstance(source, str) else source


@lru_cache(maxsize=2)
def _described(description: str) -> Task:
    return get_task(json.loads(description), own=True)


def judge_of(source: JudgeSource) -> Judge:
    """Return a judge beside the task; built-in ones are read once a process."""
    return _described_judge(source) if isinstance(source, str) else source


@lru_cache(maxsize=16)
def _described_judge(description: str) -> Judge:
    return get_judge(json.loads(description), own=True)


def known_reference(folder: StudyFolder, seed: int) -> dict[str, Any] | None:
    """Return the measurement of a reference that an earlier run trained and kept unharmed, or None."""
    return _known(folder, folder.reference(seed), folder.reference(seed) / "measurement.json")


def known_compressed(folder: StudyFolder, recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """Return what an earlier run found of a recipe that it compressed but did not time any more, or None."""
    found = _known(folder, folder.artifact(recipe.name, seed), folder.compressed_file(recipe.name, seed))
    return found if found is not None and found.get("recipe_hash") == recipe.hash else None


def _known(folder: StudyFolder, place: Path, file: Path) -> dict[str, Any] | None:
    try:
        artifact.check_files(place)
    except ArtifactError:
        return None  # it is made again
    found = read_json(file)
    return None if found is None or fault_of(found, folder.root) else found


def train_reference(job: Job) -> dict[str, Any] | Failure:
    """Train, judge and keep the uncompressed model of a seed, and return its measurement."""
    return _guarded(_train_reference, job)


def compress_one(job: Job) -> dict[str, Any] | Failure:
    """Apply a recipe to its seed's reference, keep the artifact, judge what was kept, and return what is known."""
    return _guarded(_compress_one, job)


def fit_baselines(job: Job) -> dict[str, Any] | Failure:
    """Fit the simple baselines of a task that has any, and return their metrics by name."""
    return _guarded(_fit_baselines, job)


def perform(item: tuple[Work, Job]) -> dict[str, Any] | Failure:
    """Do one piece of work: what an engine is given, so that different kinds of work share its workers."""
    work, job = item
    return work(job)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _guarded(work: Any, job: Job) -> dict[str, Any] | Failure:
    try:
        with _threads(job.threads):
            torch.manual_seed(job.seed)
            return dict(work(job))
    except LessenError as error:
        return Failure(str(error), type(error).__name__, fatal=isinstance(error, OutputError))
    except Exception as error:  # a bug in a method or a task costs its own run, not the study
        folder = StudyFolder(job.root)
        folder.keep_trace(job.recipe.name, job.seed, traceback.format_exc())
        return Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


def _train_reference(job: Job) -> dict[str, Any]:
    folder, task, device = StudyFolder(job.root), task_of(job.source), find_device(job.device)
    place = folder.reference(job.seed)
    folder.discard(place)
    if not task.pretrained:
        untrained = private_copy(task.build())
        check_rebuilt(untrained, task)
        inputs_for(task, untrained)  # refused before it is trained
        torch.manual_seed(job.seed)
    start = time.perf_counter()
    model = task.view(device=device).reference(job.seed, LOG.get()).to(device)
    seconds = time.perf_counter() - start
    check_finite(model, f"the reference of seed {job.seed}")
    judged, costs = _judged(job, model, REFERENCE)
    stored = artifact.stored_size(model, model, description_of(task))
    cost = asdict(measure_cost(task, model, stored_bytes=stored)) | {"train_s": seconds} | costs
    found = sealed({"seed": job.seed, **judged, "cost": cost})
    model = model.to("cpu")
    _save(place, model, model, task, {"measurement.json": files.dump_json(found)})
    return plain(found)


def _compress_one(job: Job) -> dict[str, Any]:
    folder, task, name = StudyFolder(job.root), task_of(job.source), job.recipe.name
    place, device = folder.artifact(name, job.seed), find_device(job.device)
    folder.discard(place)
    reference = artifact.load(folder.reference(job.seed), model=task.build())
    compact, ledger = job.recipe.apply(reference.to(device), task, seed=job.seed, log=LOG.get())
    compact, reference = compact.to("cpu"), reference.to("cpu")
    extra = {"recipe.yaml": files.dump_yaml(job.recipe.describe())}
    stored = _save(place, compact, reference, task, extra, base_of(reference) if job.recipe.keeps_base else None)
    kept = artifact.load(place, model=reference).to(device)  # what is judged is what lies on disk
    judged, costs = _judged(job, kept, name)
    cost = measure_cost(task, kept, stored_bytes=stored, ledger=ledger)
    found = sealed(
        {
            "recipe": name,
            "recipe_hash": job.recipe.hash,
            "seed": job.seed,
            "steps": ledger_records(ledger),
            **judged,
            "cost": asdict(cost) | costs,
        }
    )
    folder.write_json(folder.compressed_file(name, job.seed), found)
    return plain(found)


def _judged(job: Job, model: nn.Module, name: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Judge a model by the task and by every judge beside it, keep the outcomes; return figures and costs."""
    folder, task = StudyFolder(job.root), task_of(job.source)
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    limits: dict[str, dict[str, float | None]] = {}
    costs: dict[str, float] = {}
    deviations: dict[str, float] = {}
    judges = {"": task, **{judge.name: judge for judge in map(judge_of, job.judges)}}
    for prefix, judge in judges.items():
        quality = measure_quality(judge, model)
        folder.write_outcomes(name, job.seed, quality, prefix)
        if name == REFERENCE:
            known = standards(judge.metrics, quality.outcomes)
            limits |= {metric_name(prefix, metric): value for metric, value in known.items()}
        values |= {metric_name(prefix, metric): value for metric, value in quality.values.items()}
        intervals |= {metric_name(prefix, metric): value for metric, value in quality.intervals.items()}
        costs |= judge.costs(quality.outcomes)
        if name != REFERENCE:
            before = read_jackknife(outcome_path(folder.root, REFERENCE, job.seed, prefix))
            apart = difference_deviations(before, quality.jackknife, judge.metrics, quality.outcomes)
            deviations |= {metric_name(prefix, metric): value for metric, value in apart.items()}
    evidence = evidence_of(job.root, name, job.seed, judges)
    found = {"quality": values, "quality_ci": intervals, EVIDENCE: evidence}
    return {**found, **({STANDARDS: limits} if name == REFERENCE else {"difference_sd": deviations})}, costs


def metric_name(judge: str, metric: str) -> str:
    """Return what a record calls a metric: those of a judge beside the task have its name in front."""
    return f"{judge}.{metric}" if judge else metric


def _fit_baselines(job: Job) -> dict[str, Any]:
    return task_of(job.source).baselines(LOG.get())


def _save(
    place: Path,
    model: nn.Module,
    base: nn.Module,
    task: Task,
    extra: Mapping[str, str],
    reference: BaseReference | None = None,
) -> int:
    probe = inputs_for(task, model)
    described = description_of(task)
    return artifact.save(place, model, base, task=described, probe=probe, extra=extra, reference=reference)


def description_of(task: Task) -> dict[str, Any] | None:
    """Return the description by which an artifact finds its task, or None for a user's own."""
    return task.describe() if task.Options is not None else None


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Return values as a reader of the file would see them, so that a resumed run continues from the same ones."""
    return dict(json.loads(files.dump_json(found)))


def planned_steps(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the steps of a recipe that gave no ledger, so that the report can still group it by family."""
    return [
        {
            "method": step.card.name,
            "family": step.card.family,
            "claims": sorted(step.card.claims),
            "knobs": step.knobs(),
        }
        for step in recipe.steps
    ]


def as_error(failure: Failure, where: str) -> LessenError:
    """Return the error that a job met, of its own class and with the place in front."""
    cls = vars(errors).get(failure.kind, EnvironmentFault)
    return (
        EnvironmentFault(f"{where}: {failure.message}")
        if cls is MissingExtraError
        else cls(f"{where}: {failure.message}")
    )
