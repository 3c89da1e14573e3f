"""Getting the model that a command names: an artifact, a file of weights, or the task's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen import files
from lessen.architectures.folder import TOKENIZERS, companions, is_host, neighbour, read_folder
from lessen.architectures.loading import BUILT_IN, host_folder, load_host
from lessen.artifact import folder as artifact
from lessen.artifact.state import load_state
from lessen.cli.arguments import task_of
from lessen.cli.user_code import is_own, own_model
from lessen.errors import ConfigError
from lessen.log import SILENT, Log
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks import get_task

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the names of classes end that write text from left to right."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


def open_model(
    name: str | None,
    task: str | None,
    *,
    seed: int = 0,
    log: Log = SILENT,
    recipe: Recipe | None = None,
    text: str | None = None,
) -> tuple[nn.Module, Task]:
    """Return the model that a command names, in eval mode, and the task that judges it.

    Args:
        name: `reference`, an artifact, a Hugging Face folder, a GGUF file, the user's own FILE.py:NAME, a file of
            weights for the task's model; None stands for the task's untrained model.
        task: as written for `--task`. An artifact may name its own; a causal language model with its tokenizer is
            judged on text, any other Hugging Face model by how far it agrees with its uncompressed self (`agreement`).
        recipe: what will be done to the model: refused before a reference is trained, where that can be told.
        text: what a language model is calibrated and judged on; a file, a folder of .txt files, or `news`.

    Raises:
        ConfigError: nothing is there, a task is missing, or the task judges a model of its own.
        ArtifactError, DataError: a file is damaged, or tensors do not fit the model.
    """
    if name is not None and is_host_name(name):
        return _hosted(name, task, text, log)
    if text is not None:
        raise ConfigError(_no_text_for(name))
    judge = task_of(task) if task is not None else get_task(_task_of_artifact(name), "--task")
    if name is None:
        torch.manual_seed(0)
        return judge.build().eval(), judge
    if name == "reference" and recipe is not None and not judge.pretrained and not Path(name).exists():
        recipe.rehearse(judge)
    return _load(name, judge, seed, log), judge


def is_host_name(name: str) -> bool:
    """Tell whether `name` is a model with a configuration of its own: a folder, a GGUF file, the built-in one."""
    path = Path(name)
    if path.is_dir() and (path / artifact.MANIFEST).is_file():
        return False
    return is_host(path) or name.endswith(".gguf") or (name.lower() in BUILT_IN and not path.exists())


def _hosted(name: str, task: str | None, text: str | None, log: Log) -> tuple[nn.Module, Task]:
    if task is not None and text is not None:
        raise ConfigError("give --text or --task, not both: --task language:text=FILE")
    if task is None and (text is not None or _reads_text(name)):
        from lessen.tasks.language.perplexity import LanguageTask

        language = LanguageTask.of_host(name, text)
        model = language.reference(log=log)
        log.note(f"calibrated and judged on text: {language.notes()[0]}; give --text for your own, or --task")
        return model, language
    if task is None:
        judge: Task = get_task({"name": "agreement", "model": name}, "--task")
        model = judge.reference(log=log)
        log.note(f"{judge.notes()[0]}; give --task to judge quality")
        return model, judge
    judge = task_of(task)
    if callable(hosted := getattr(judge, "hosted", None)):
        judge = hosted(name)
        return judge.reference(log=log), judge
    if judge.Options is not None:
        raise ConfigError(
            f"task {judge.name!r} judges a model of its own, not {name}; give a task for host models (language, "
            "retrieval, agreement) or your own: --task FILE.py:NAME"
        )
    return load_host(name, log=log), judge


def _reads_text(name: str) -> bool:
    """Tell whether a host is a causal language model whose tokenizer lies beside it."""
    path = host_folder(name)
    found = companions(path)
    return read_folder(path).architecture.endswith(CAUSAL) and any(one in found for one in TOKENIZERS)


def _load(name: str, task: Task, seed: int, log: Log) -> nn.Module:
    path = Path(name)
    if name == "reference" and not path.exists():
        return task.reference(seed, log)
    if is_own(name):
        return own_model(name)
    if path.is_dir() and (path / artifact.MANIFEST).is_file():
        return artifact.load(path, model=task.build())
    weights = path / artifact.WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise ConfigError(
            f"no model at {name!r}; give an artifact, a Hugging Face folder, a GGUF or .safetensors file, "
            "FILE.py:NAME, or the word 'reference' to train it"
        )
    return _from_weights(weights, task.build())


def _no_text_for(name: str | None) -> str:
    """Say why --text does not go with what was named."""
    if name is not None and not is_own(name) and not Path(name).exists() and name != "reference":
        return f"no model at {name!r}{neighbour(Path(name))}"
    if name is not None and (Path(name) / artifact.MANIFEST).is_file():
        return f"{name} is an artifact and names its task; for other text give --task language:text=FILE, not --text"
    if name is not None and Path(name).is_dir():
        return f"{name} holds no config.json, so it is no Hugging Face folder, which --text is for"
    return "--text belongs to a language model of your own; give this task its text as an option"


def _task_of_artifact(name: str | None) -> dict[str, Any]:
    path = Path(name) / artifact.STRUCTURE if name is not None else None
    if path is not None and path.is_file():
        structure = files.parse_json(files.read_checked(path), str(path))
        task = structure.get("task") if isinstance(structure, dict) else None
        if isinstance(task, dict):
            return task
    if name is not None and not is_own(name) and not Path(name).exists() and name != "reference":
        raise ConfigError(f"no model at {name!r}{neighbour(Path(name))}")
    if name is not None and name.endswith(".py"):
        raise ConfigError(f"{name} is Python code; for a model in it write {name}:NAME")
    what = f"{name!r} does not say which task builds it" if name is not None else "give a model or a task"
    raise ConfigError(f"{what}; add --task NAME (see: lessen tasks), or your own: --task FILE.py:NAME")


def _from_weights(path: Path, model: nn.Module) -> nn.Module:
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which may run code when read; write the weights with safetensors.torch.save_file"
        )
    return load_state(model, path).eval()
