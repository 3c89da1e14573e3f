"""One run of the BARS protocol: check the files, encode, train as published, judge on test, keep the result as JSON."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lessen.data.catalogue import ARCHIVES
from lessen.data.encode import encode_logs
from lessen.errors import DataError
from lessen.files import atomic_write, dump_json, parse_json, read_checked
from lessen.log import SILENT, Log
from lessen.metrics import AUC, LOGLOSS
from lessen.task import Split
from lessen.tasks.ctr.bars.datasets import BarsData, checked_files, data_of, derived
from lessen.tasks.ctr.bars.intervals import auc_interval, logloss_interval
from lessen.tasks.ctr.bars.recipes import Recipe
from lessen.tasks.ctr.logs import LogClicks, LogOptions
from lessen.train.fit import FitResult, fit
from lessen.train.parallel import Group, check_parallel, group
from lessen.version import __version__

VERSION = 1


@dataclass(frozen=True)
class RunSettings:
    """What a caller may choose; the rest is as published."""

    seed: int | None = None
    """The published seed if None; other torch versions give other numbers in any case."""
    epochs: int | None = None
    updates: Literal["dense", "lazy-adam"] = "dense"
    """Lazy Adam is much faster on large tables; table_l2 then reaches the rows of a batch only."""
    own_split: bool = False
    """Take files whose MD5 is not the published one."""


class BarsClicks(LogClicks):
    """An encoded data set of BARS with the published model, trainer and early-stopping rule."""

    name = "bars"

    def __init__(self, recipe: Recipe, folder: Path, settings: RunSettings) -> None:
        self.recipe = recipe
        options = LogOptions(
            data=str(folder),
            model=recipe.network,
            arguments=recipe.entry.arguments,
            dim=recipe.dim,
            batch_size=recipe.batch_size,
            learning_rate=recipe.training.learning_rate,
            table_l2=recipe.entry.table_l2,
            table_updates=settings.updates,
            epochs=settings.epochs or recipe.training.epochs,
            patience=recipe.patience,
        )
        super().__init__(options)

    def score(self, model: nn.Module, split: Split = "validation") -> float:
        """Return what BARS stops early on: AUC, or AUC minus log loss."""
        scores, targets = self.predictions(model, split)
        loss = LOGLOSS(scores, targets) if self.recipe.training.monitor == "auc - logloss" else 0.0
        return AUC(scores, targets) - loss


def run_bars(
    recipe: Recipe, out: Path, files: Path | None = None, settings: RunSettings | None = None, log: Log = SILENT
) -> Path:
    """Train a model as BARS-CTR did and write DATASET_MODEL_SEED.json into `out`; returns its path.

    The encoded data (`out`/data_...) and a checkpoint after each epoch stay there: a second run reuses the one and a
    stopped run continues from the other. A result that is there already is kept as it is.

    Args:
        files: folder of train.csv, valid.csv and test.csv; by default where `lessen data get` puts them.

    Raises:
        DataError: a file is missing, lacks a column, is not the published one or holds a bad value.
        ConfigError: the model does not fit the data.
        OutputError: `out` cannot be written.
    """
    settings = settings or RunSettings()
    seed = recipe.training.seed if settings.seed is None else settings.seed
    path = out / f"{recipe.dataset}_{recipe.model}_{seed}.json"
    if path.exists():
        log.note(f"{path} is there already; remove it to run again")
        return path
    with group() as ranks:
        folder = _encoded(recipe, out, files, settings, log, ranks)
        task = BarsClicks(recipe, folder, settings)
        check_parallel(ranks, task.batch_size)
        torch.manual_seed(seed)
        model = task.build()
        checkpoint = path.with_suffix(".checkpoint")
        did = _train(task, model, seed, checkpoint, log if ranks.first else SILENT, ranks)
        if ranks.first:
            atomic_write(path, dump_json(_result(task, model, seed, settings, did)))
            checkpoint.unlink(missing_ok=True)
        ranks.wait()
    return path


def _encoded(recipe: Recipe, out: Path, files: Path | None, settings: RunSettings, log: Log, ranks: Group) -> Path:
    """Return the encoded data set; the first process makes it, the others wait."""
    data = data_of(recipe.dataset)
    target = out / f"data_{data.name}_{recipe.training.minimum_count}"
    with ranks.first_alone():
        if ranks.first:
            _encode(data, recipe, files or ARCHIVES[data.name].folder, target, settings, log)
    return target


def _encode(data: BarsData, recipe: Recipe, source: Path, target: Path, settings: RunSettings, log: Log) -> None:
    log.note(f"checking the files of {data.name} in {source}")
    paths: Mapping[str, Path] = checked_files(data, source, published=not settings.own_split)
    if data.timed:
        paths = derived(paths, target.with_name(f"{target.name}_times"))
    encoded = encode_logs(
        {split: [str(path)] for split, path in paths.items()},
        data.schema(recipe.training.minimum_count),
        target,
        log=log,
    )
    for split, expected in zip(paths, data.rows, strict=True):
        if encoded.rows[split] != expected and not settings.own_split:
            log.note(f"the {split} part has {encoded.rows[split]:,} rows, the published one {expected:,}")


def _train(task: BarsClicks, model: nn.Module, seed: int, checkpoint: Path, log: Log, ranks: Group) -> FitResult:
    return fit(
        model,
        batches=lambda epoch: task.batches("train", seed=seed * 1_000_003 + epoch),
        loss=task.loss,
        validate=lambda candidate: task.score(candidate, "validation"),
        settings=task.settings,
        seed=seed,
        log=log,
        checkpoint=checkpoint,
        ranks=ranks,
    )


def _result(task: BarsClicks, model: nn.Module, seed: int, settings: RunSettings, did: FitResult) -> dict[str, Any]:
    recipe = task.recipe
    return {
        "version": VERSION,
        "dataset": recipe.dataset,
        "model": recipe.model,
        "seed": seed,
        "published_files": not settings.own_split,
        "test": judged(task, model, "test"),
        "validation": judged(task, model, "validation"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": did.epochs,
        "best_epoch": did.best_epoch,
        "train_seconds": did.seconds,
        "settings": {**task.options.model_dump(), "data": task.dataset.folder.name, "monitor": recipe.training.monitor},
        "data_fingerprint": task.fingerprint(),
        "rows": task.dataset.rows,
        "history": did.history,
        "lessen": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def judged(task: LogClicks, model: nn.Module, split: Split) -> dict[str, Any]:
    """Return AUC and log loss of a split with 95 % intervals over its examples, and their number."""
    scores, targets = task.predictions(model, split)
    return {
        "auc": AUC(scores, targets),
        "auc_interval": list(auc_interval(scores, targets)),
        "logloss": LOGLOSS(scores, targets),
        "logloss_interval": list(logloss_interval(scores, targets)),
        "examples": len(targets),
        "positives": int(targets.sum()),
    }


def read_result(path: Path) -> dict[str, Any]:
    """Return a result that `run_bars` wrote. Raises DataError if it is none."""
    value = parse_json(read_checked(path), str(path))
    known = isinstance(value, dict) and value.get("version") == VERSION and isinstance(value.get("test"), dict)
    if not known or not re.fullmatch(r"[\w.]+", str(value.get("dataset", ""))):
        raise DataError(f"{path} is no result of lessen bars run; give the JSON files that it wrote")
    return dict(value)
