"""Weights as a delta: tensors that equal the base's bit for bit are named, not stored again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor, nn

from lessen.artifact.layout import BaseReference, Structure
from lessen.artifact.tensors import Form, digest_of, form_of, same_bits, state_of
from lessen.errors import ArtifactError

ALL = "*"


def base_of(
    model: nn.Module,
    kind: Literal["task", "folder", "own"] = "own",
    name: str | None = None,
    revision: str | None = None,
) -> BaseReference:
    """Return a reference to `model`, with the digest of its state, so that a delta can be taken from it.

    Args:
        kind: "task": the reference of the artifact's task, which comes with its weights; "folder": a Hugging Face
            folder of this `name` and `revision`; "own": a model that whoever loads must bring.

    Raises:
        ArtifactError: a tensor that cannot be stored, or a folder without a name.
    """
    if kind == "folder" and not name:
        raise ArtifactError("a base that is a folder needs its name")
    return BaseReference(kind=kind, digest=digest_of(state_of(model)), name=name, revision=revision)


def take(
    state: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """Return (tensors that the base does not hold, names that equal the base's, names of others that do)."""
    same = {name for name, tensor in state.items() if name in base and same_bits(tensor, base[name])}
    alike: dict[Form, list[str]] = defaultdict(list)
    for name, tensor in base.items():
        alike[form_of(tensor)].append(name)
    rest: dict[str, Tensor] = {}
    moved: dict[str, str] = {}
    for name, tensor in state.items():
        if name in same:
            continue
        found = next(
            (other for other in alike[form_of(tensor)] if tensor.numel() and same_bits(tensor, base[other])), None
        )
        if found is None:
            rest[name] = tensor
        else:
            moved[name] = found
    return rest, collapsed(same, base), moved


def collapsed(names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Return the shortest patterns that mean `names` among `everything`: `*`, `path.*` for whole modules, and names."""
    chosen = set(names)
    whole: dict[str, bool] = {"": True}
    for name in everything:
        for path in _above(name):
            whole[path] = whole.get(path, True) and name in chosen
    found: dict[str, None] = {}
    for name in sorted(chosen):
        top = next((path for path in _above(name) if whole[path]), None)
        found[name if top is None else f"{top}.{ALL}" if top else ALL] = None
    return list(found)


def expanded(patterns: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Return the names that patterns mean among `everything`. Raises ArtifactError for one that means none."""
    below: dict[str, list[str]] = defaultdict(list)
    known = list(everything)
    for name in known:
        for path in _above(name):
            below[f"{path}.{ALL}" if path else ALL].append(name)
    exact = set(known)
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if pattern in exact else below.get(pattern)
        if not names:
            raise ArtifactError(
                f"structure.json: the base has no tensor {pattern!r}, which stays; is it the right one?"
            )
        found.update(dict.fromkeys(names))
    return list(found)


def borrowed(structure: Structure, base: nn.Module, where: str) -> dict[str, Tensor]:
    """Return the tensors that a delta leaves to its base, by the names that they have in the result.

    Raises:
        ArtifactError: the base is another one, or lacks a tensor.
    """
    state = state_of(base)
    needed = structure.base
    if needed is not None and digest_of(state) != needed.digest:
        raise ArtifactError(f"{where} is a delta to another base than the model given: {named(needed)}")
    found = {name: state[name] for name in expanded(structure.same, state)}
    for name, source in structure.moved.items():
        if source not in state:
            raise ArtifactError(f"{where}: the base has no tensor {source!r}, from which {name!r} is taken")
        found[name] = state[source]
    return found


def named(base: BaseReference) -> str:
    """Return how a person finds the base: what it is, and how to bring it."""
    what = {"task": "the reference of its task", "own": "the model that it was made from"}.get(base.kind, "")
    if base.kind == "folder":
        what = f"{base.name}" + (f" at revision {base.revision}" if base.revision else "")
    return f"it needs {what}, whose state has the digest {base.digest[:12]}; pass it: lessen.load(path, model=base)"


def _above(name: str) -> list[str]:
    """Return the paths of the modules that a tensor lies in, from the outermost, which is ''."""
    parts = name.split(".")[:-1]
    return ["", *(".".join(parts[: number + 1]) for number in range(len(parts)))]
