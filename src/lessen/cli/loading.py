"""Getting the model that a command names: an artifact, a file of weights, or the task's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen import files
from lessen.artifact import folder as artifact
from lessen.artifact.state import load_state
from lessen.cli.words import task_of
from lessen.errors import ConfigError
from lessen.log import SILENT, Log
from lessen.task import Task
from lessen.tasks import get_task

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


def load_model(name: str, task: Task, *, seed: int = 0, log: Log = SILENT) -> nn.Module:
    """Return the model that `name` stands for, in eval mode; `reference` trains the task's own.

    Raises:
        ConfigError: nothing is there, or it is a pickle.
        ArtifactError: it is damaged, or its tensors do not fit the task's model.
    """
    path = Path(name)
    if name == "reference" and not path.exists():
        return task.reference(seed, log)
    if path.is_dir() and (path / artifact.MANIFEST).is_file():
        return artifact.load(path, model=task.build())
    weights = path / artifact.WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise ConfigError(
            f"no model at {name!r}; give an artifact, a .safetensors file, or the word 'reference' to train it"
        )
    return _from_weights(weights, task.build())


def open_model(name: str | None, task: str | None) -> tuple[nn.Module, Task]:
    """Return a model to look at and its task, which an artifact of a built-in task names. Raises ConfigError.

    `task` is written as for `--task`.
    """
    built = task_of(task) if task is not None else get_task(_task_of_artifact(name), "--task")
    if name is None:
        torch.manual_seed(0)
        return built.build().eval(), built
    return load_model(name, built), built


def _task_of_artifact(name: str | None) -> dict[str, Any]:
    path = Path(name) / artifact.STRUCTURE if name is not None else None
    if path is not None and path.is_file():
        structure = files.parse_json(files.read_checked(path), str(path))
        task = structure.get("task") if isinstance(structure, dict) else None
        if isinstance(task, dict):
            return task
    what = f"{name!r} does not say which task builds it" if name is not None else "give a model or a task"
    raise ConfigError(f"{what}; add --task NAME (see: lessen tasks), or your own: --task FILE.py:NAME")


def _from_weights(path: Path, model: nn.Module) -> nn.Module:
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which may run code when read; write the weights with safetensors.torch.save_file"
        )
    return load_state(model, path).eval()
