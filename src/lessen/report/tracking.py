"""A study in an experiment tracker: each recipe is a run with its knobs, figures, verdict and files.

A study that is sent again updates its runs: they are known by study, recipe, and the data that were judged.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen.errors import ConfigError, EnvironmentFault, LessenError, MissingExtraError, nearest
from lessen.frontier import Frontier, Point
from lessen.frontier.records import file_name
from lessen.report import FILES
from lessen.report.table import rows

KEY = "lessen.run"
"""Tag of a run that tells which recipe of which study it is."""
LONGEST = 250
"""Characters of a knob's value that trackers take."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of one recipe."""

    key: str
    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    files: tuple[Path, ...]


def runs_of(frontier: Frontier, folder: Path | str) -> Iterator[TrackedRun]:
    """Yield what there is to tell of each recipe of a frontier; files are those of `folder` that are there.

    Metrics are the numbers of `frontier.csv`: means over seeds, differences with the ends of their intervals, costs in
    their units and as shares of the uncompressed model. What a method chose stands in the files, knobs in the params.
    """
    folder = Path(folder)
    data = "".join(study.fingerprint for study in frontier.studies)
    task = frontier.studies[0].task_name
    report = [folder / name for name in FILES]
    for point, row in zip(frontier, rows(frontier), strict=True):
        numbers = {_metric(key): float(value) for key, value in row.items() if _is_number(value)}
        words = {key: str(value) for key, value in row.items() if isinstance(value, (str, bool)) and value != ""}
        words |= {"task": task, "margin": f"{frontier.margin:g}", "metric": frontier.primary}
        words |= {f"error.{seed}": text for seed, text in point.errors.items()}
        key = hashlib.sha256("\n".join((point.study, point.recipe, point.recipe_hash, data)).encode()).hexdigest()[:16]
        records = [folder / "runs" / f"{file_name(point.recipe)}-{seed}.json" for seed in point.seeds]
        files = tuple(path for path in (*report, *records) if path.is_file())
        yield TrackedRun(key, point.label, _knobs(point), numbers, words, files)


def to_mlflow(folder: Path | str, experiment: str | None = None, frontier: Frontier | None = None) -> list[str]:
    """Write a study to MLflow, where `MLFLOW_TRACKING_URI` says, and return the ids of its runs.

    Args:
        folder: what `lessen run` wrote.
        experiment: its name; default the study's.
        frontier: what is told, where it is in memory already; default that of `folder`.

    Raises:
        MissingExtraError: mlflow is not installed.
        DataError: no measurements in the folder, or damaged ones.
        EnvironmentFault: MLflow refuses or cannot be reached.
    """
    try:
        import mlflow
    except ImportError as error:
        raise MissingExtraError("mlflow", "mlflow-skinny", "writing a study to MLflow") from error
    told = frontier or Frontier.load(folder)
    done = []
    try:
        client = mlflow.MlflowClient()
        place = mlflow.set_experiment(experiment or told.studies[0].name).experiment_id
        for run in runs_of(told, folder):
            known = client.search_runs([place], f"tags.`{KEY}` = '{run.key}'", max_results=1)
            which: dict[str, Any] = {"run_id": known[0].info.run_id} if known else {"run_name": run.name}
            with mlflow.start_run(**which) as active:
                mlflow.set_tags({KEY: run.key, **{f"lessen.{name}": text for name, text in run.tags.items()}})
                mlflow.log_params(run.params)
                mlflow.log_metrics(run.metrics)
                for path in run.files:
                    mlflow.log_artifact(str(path))
                done.append(active.info.run_id)
    except Exception as error:  # a foreign service: whatever it raises is one line
        raise _refused("MLflow", error) from error
    return done


def to_wandb(folder: Path | str, project: str | None = None, frontier: Frontier | None = None) -> list[str]:
    """Write a study to Weights & Biases, where `WANDB_MODE` and `WANDB_BASE_URL` say, and return the ids of its runs.

    Args:
        folder: what `lessen run` wrote.
        project: its name; default the study's.
        frontier: what is told, where it is in memory already; default that of `folder`.

    Raises:
        MissingExtraError: wandb is not installed.
        DataError: no measurements in the folder, or damaged ones.
        EnvironmentFault: W&B refuses or cannot be reached.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError("wandb", "wandb", "writing a study to Weights & Biases") from error
    told = frontier or Frontier.load(folder)
    done = []
    try:
        for run in runs_of(told, folder):
            active = wandb.init(
                project=project or told.studies[0].name,
                id=run.key,
                name=run.name,
                resume="allow",
                config=run.params,
                tags=[run.tags["verdict"]],
            )
            active.summary.update({**run.metrics, **run.tags})
            for path in run.files:
                active.save(str(path), base_path=str(folder), policy="now")
            active.finish()
            done.append(run.key)
    except Exception as error:  # a foreign service: whatever it raises is one line
        raise _refused("Weights & Biases", error) from error
    return done


TRACKERS: dict[str, Callable[[Path | str, str | None, Frontier | None], list[str]]] = {
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}


def tracker(name: str) -> Callable[[Path | str, str | None, Frontier | None], list[str]]:
    """Return what writes a study to a tracker. Raises ConfigError for a name that is none."""
    if name not in TRACKERS:
        raise ConfigError(f"no tracker {name!r}; {nearest(name, TRACKERS)}")
    return TRACKERS[name]


def _knobs(point: Point) -> dict[str, str]:
    """Return the knobs by step, method and name: `1.emb-rowwise-quant.bits`."""
    found = {}
    for number, step in enumerate(point.steps, 1):
        found[f"{number}"] = str(step.get("method", ""))
        for name, value in (step.get("knobs") or {}).items():
            found[f"{number}.{step.get('method', '')}.{name}"] = str(value)[:LONGEST]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _metric(name: str) -> str:
    """Return a name that MLflow takes too: `ndcg@10` is `ndcg_10`."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _refused(service: str, error: Exception) -> LessenError:
    if isinstance(error, LessenError):
        return error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return EnvironmentFault(f"{service} did not take the study: {lines[0]}")
