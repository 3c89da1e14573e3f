"""One file that holds a training between two epochs: tensors as safetensors, scalars as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lessen.errors import ArtifactError
from lessen.files import atomic_write, parse_json
from lessen.train.settings import FitSettings

VERSION = 1
CAPS = ("epochs", "steps", "max_seconds", "decay_steps")
"""Settings that may change between a training and its continuation."""
Groups = dict[str, dict[str, Tensor]]


def save_checkpoint(
    path: Path,
    groups: Groups,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Write named groups of tensors, the optimisers' state and JSON scalars to `path` in one atomic step.

    Raises:
        OutputError: the place cannot be written.
    """
    state = {
        f"{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, tensors in {**groups, "optimizer": state}.items()
        for name, tensor in tensors.items()
    }
    header = {"version": VERSION, "identity": identity, "progress": progress}
    atomic_write(path, save(flat, metadata={"lessen": json.dumps(header)}))


def load_checkpoint(
    path: Path,
    optimizers: Sequence[torch.optim.Optimizer],
    model: nn.Module,
    trained: Mapping[str, Tensor],
    identity: Mapping[str, Any],
) -> tuple[Groups, dict[str, Any]]:
    """Read what `save_checkpoint` wrote, fill `optimizers`, and return the other groups and the scalars.

    Args:
        model: will continue; names and shapes must agree with the file.
        trained: those of its tensors that training changes: the file has all of them, and perhaps others of the model.
        identity: settings and seed of the training that wants to continue.

    Raises:
        ArtifactError: the file is damaged, of another version, or of another model or training.
    """
    groups, header = _parts(path)
    _check_identity(path, header.get("identity"), json.loads(json.dumps(identity)))
    _check_shapes(path, model, trained, groups["model"])
    state = groups.pop("optimizer")
    for number, optimizer in enumerate(optimizers):
        prefix = f"{number}."
        _fill(optimizer, {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
    return groups, dict(header["progress"])


def read_checkpoint(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Return the groups of tensors and the scalars of a checkpoint. Raises ArtifactError if it is damaged."""
    groups, header = _parts(path)
    return groups, dict(header["progress"])


def _parts(path: Path) -> tuple[Groups, dict[str, Any]]:
    flat, header = _read(path)
    if header.get("version") != VERSION or "progress" not in header:
        raise ArtifactError(f"checkpoint {path} has version {header.get('version')}, this release reads {VERSION}")
    groups: Groups = {"model": {}, "best": {}, "generator": {}, "optimizer": {}, "device": {}, "hooks": {}}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        if group not in groups:
            raise ArtifactError(f"checkpoint {path} holds the unknown tensor {key[:80]!r}")
        groups[group][name] = tensor
    return groups, header


def _check_identity(path: Path, found: Any, expected: dict[str, Any]) -> None:
    """Compare settings and seed. Files of older releases list settings that have their default, too."""
    usual = json.loads(json.dumps(asdict(FitSettings())))
    same = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    if same:
        settings = {**usual, **found["settings"]}
        wanted = {**usual, **expected["settings"]}
        same = all(settings.get(k) == wanted[k] for k in wanted if k not in CAPS) and settings.keys() <= wanted.keys()
        same = same and found.get("seed") == expected["seed"]
    if not same:
        raise ArtifactError(f"checkpoint {path} belongs to a training with other settings or seed; remove it first")
    if found.get("frozen", expected.get("frozen")) != expected.get("frozen"):
        raise ArtifactError(f"checkpoint {path} belongs to a model whose frozen parameters differ; remove it first")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as handle:
            header = parse_json((handle.metadata() or {}).get("lessen", "{}"), f"header of checkpoint {path}")
            return {key: handle.get_tensor(key) for key in handle.keys()}, header  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"checkpoint {path} is damaged ({error}); remove it to train from the start") from error


def _check_shapes(path: Path, model: nn.Module, trained: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    known = {name: value.shape for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name in sorted(set(trained) | set(found)):
        if name not in found or known.get(name) != found[name].shape:
            raise ArtifactError(f"checkpoint {path} belongs to another model: tensor {name!r} differs; remove it first")


def _fill(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in flat.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # a file holds tensors in plain order; a fused kernel walks a parameter and its moments in memory, side by side
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state.get(parameter, {})
            for name, value in own.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
