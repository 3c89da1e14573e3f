"""Finds checkpoints on disk: single files, folders of files, Hugging Face Trainer and sharded folders, Lightning."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lessen.checkpoints.groups import natural
from lessen.checkpoints.images import TORCH_SUFFIXES, load_tree, step_of
from lessen.errors import DataError

_SUFFIXES = TORCH_SUFFIXES | {".safetensors"}
_OPAQUE = re.compile(r"^(training_args|rng_state|scheduler|scaler|random_states).*\.(bin|pt|pth)$")
"""Files of a checkpoint folder that hold no arrays worth packing and may hold objects: kept as bytes, never opened."""
_LATEST = re.compile(r"^(last|latest)\b")


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint on disk: its step and its files with their names inside the checkpoint."""

    step: int
    source: Path
    files: tuple[tuple[Path, str], ...]

    def must_load(self, path: str) -> bool:
        """Say whether a torch file must load (and is refused if it would run code) or is kept as bytes."""
        return not _OPAQUE.match(Path(path).name)


def find_snapshots(paths: Sequence[Path]) -> list[Snapshot]:
    """Return the checkpoints that `paths` name, by step.

    A path is a checkpoint file, a checkpoint folder (weights, shards and optimiser state of one step), or a run: a
    folder of either. The step is what the checkpoint says (`step`, `global_step`), or the last number in its name.

    Raises:
        DataError: nothing there, no step to be found, or two checkpoints of one step.
    """
    found: list[Snapshot] = []
    for path in paths:
        found += _find(path)
    if not found:
        raise DataError(
            f"no checkpoint in {', '.join(map(str, paths))}: looked for {', '.join(sorted(_SUFFIXES))} "
            "and for folders that hold them"
        )
    found.sort(key=lambda snapshot: snapshot.step)
    for one, other in itertools.pairwise(found):
        if one.step == other.step:
            raise DataError(f"{one.source} and {other.source} both are step {one.step}; name one of them")
    return found


def _find(path: Path) -> list[Snapshot]:
    if path.is_file():
        return [_single(path)]
    if not path.is_dir():
        raise DataError(f"{path} does not exist")
    if _is_checkpoint(path):
        return [_folder(path)]
    folders = [child for child in sorted(path.iterdir()) if child.is_dir() and not child.is_symlink()]
    found = [_folder(child) for child in folders if step_in_name(child.name) is not None and _holds_tensors(child)]
    loose = [child for child in sorted(path.iterdir()) if _is_tensor_file(child) and not _LATEST.match(child.stem)]
    return found + [_single(child) for child in loose if not _OPAQUE.match(child.name)]


def _is_tensor_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.suffix in _SUFFIXES


def _holds_tensors(folder: Path) -> bool:
    return any(_is_tensor_file(child) for child in folder.rglob("*"))


def _is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is one checkpoint: weights or shards under a name that tells no step."""
    names = [child.name for child in folder.iterdir() if _is_tensor_file(child)]
    return any(re.match(r"^(model|pytorch_model|optimizer|adapter_model)\b", name.replace("-", " ")) for name in names)


def _folder(folder: Path) -> Snapshot:
    step = step_in_name(folder.name)
    files = sorted(folder.rglob("*"), key=lambda child: natural(str(child)))
    members = tuple(
        (child, child.relative_to(folder).as_posix()) for child in files if child.is_file() and not child.is_symlink()
    )
    if step is None:
        raise DataError(f"{folder} tells no step: its name should end in one, such as checkpoint-500")
    return Snapshot(step, folder, members)


def _single(file: Path) -> Snapshot:
    step = step_of(load_tree(file)) if file.suffix in TORCH_SUFFIXES else None
    if step is None:
        step = step_in_name(file.stem)
    if step is None:
        raise DataError(
            f"{file} tells no step: store one under the key 'step', or put it into the name, as in step-500.pt"
        )
    return Snapshot(step, file, ((file, file.name),))


def step_in_name(name: str) -> int | None:
    """Return the step that the name of a file or folder tells, if it does."""
    named = re.search(r"step[=_-]?(\d+)", name)
    numbers = re.findall(r"\d+", name)
    if named is not None:
        return int(named.group(1))
    return int(numbers[-1]) if numbers else None
