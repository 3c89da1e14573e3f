"""Finds checkpoints on disk: single files, folders of files, Hugging Face Trainer and sharded folders, Lightning."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lessen.checkpoints.byte_map import TORCH_SUFFIXES, is_torch
from lessen.checkpoints.distributed import INDEX, SUFFIX
from lessen.checkpoints.groups import natural
from lessen.checkpoints.steps import (
    Told,
    step_in_name,
    step_marked,
    told_by_safetensors,
    told_by_torch,
    told_by_trainer,
)
from lessen.checkpoints.torch_files import TorchFile
from lessen.errors import DataError
from lessen.log import SILENT, Log

_OPAQUE = re.compile(r"^(training_args|rng_state|scheduler|scaler|random_states).*\.(bin|pt|pth)$")
"""Files of a checkpoint folder that hold no arrays worth packing and may hold objects: kept as bytes, never opened."""
_COPY = re.compile(r"(^|[-_.])(last|latest|best|final|ema|swa|averaged?)([-_.=]|$)", re.IGNORECASE)
"""Names of a file that repeats a step of the run, or a part of one, beside it."""
_WHOLE = re.compile(
    r"^(model|pytorch_model|adapter_model|diffusion_pytorch_model|optimizer|consolidated(\.\d+)?|\w*mp_rank_\d+\w*)"
    r"(-\d+-of-\d+)?(_\d+)?$"
)
"""Names without a suffix that the files of one step have in its folder."""
_PART = re.compile(
    r"\d+-of-\d+|(rank|shard|part|fsdp)[-_]?\d|^(model|pytorch_model|optimizer|sampler)_\d+$|^consolidated\."
)
"""Numbers in a name that count parts of one step, not steps."""
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch before 1.6 begin."""


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint on disk: its step and its files with their names inside the checkpoint."""

    step: int
    source: Path
    files: tuple[tuple[Path, str], ...]

    def must_load(self, file: Path, path: str) -> bool:
        """Say whether a torch file must load (and is refused if it would run code) or is kept as bytes."""
        return not _OPAQUE.match(Path(path).name) and (self.source.is_file() or not _is_foreign(file))


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint that was found, and the step its name tells if its files tell an epoch only."""

    snapshot: Snapshot
    by_name: int | None = None


def find_snapshots(paths: Sequence[Path], log: Log = SILENT, allow: Collection[str] = ()) -> list[Snapshot]:
    """Return the checkpoints that `paths` name, by step.

    A path is a checkpoint file, a checkpoint folder (weights, shards and optimiser state of one step), or a run: a
    folder of either. The step is what the files say (`step`, `global_step`, `iter_num`, ...), else what the name calls
    a step, else the epoch that the files tell, else the last number of the name. What a run holds beside its steps
    (copies such as best.pt, files without tensors or without a step) is left out and told in the log.

    Args:
        allow: dotted names of classes that torch files may hold besides the usual ones; none is ever imported.

    Raises:
        DataError: nothing there, no step to be found, two checkpoints of one step, or a link that leads outside.
        ArtifactError: a damaged file, or one that would run code.
    """
    found: list[_Candidate] = []
    for path in paths:
        found += _Search(log, allow).find(path)
    if not found:
        raise DataError(_nothing(paths))
    snapshots = sorted(_settled(found), key=lambda snapshot: snapshot.step)
    for one, other in itertools.pairwise(snapshots):
        if one.step == other.step:
            raise DataError(f"{one.source} and {other.source} both are step {one.step}; name one of them")
    return snapshots


def _settled(found: list[_Candidate]) -> list[Snapshot]:
    """Return the snapshots; several of one epoch take their steps from their names."""
    steps = [candidate.snapshot.step for candidate in found]
    names = [candidate.by_name for candidate in found]
    if len(set(steps)) < len(steps) and None not in names and len(set(names)) == len(names):
        return [replace(c.snapshot, step=c.by_name) for c in found if c.by_name is not None]
    return [candidate.snapshot for candidate in found]


def _nothing(paths: Sequence[Path]) -> str:
    below = sorted({child.parent for path in paths if path.is_dir() for child in path.rglob("*") if _is_tensors(child)})
    hint = f"; there are some in {below[0]}: name that folder" if below else ""
    suffixes = ", ".join(sorted([*TORCH_SUFFIXES, ".safetensors", SUFFIX]))
    return f"no checkpoint in {', '.join(map(str, paths))}: looked for {suffixes} and for folders that hold them{hint}"


class _Search:
    """Looks through what one path names."""

    def __init__(self, log: Log, allow: Collection[str]) -> None:
        self.log, self.allow = log, allow

    def find(self, path: Path) -> list[_Candidate]:
        if path.is_file():
            return [self._single(path)]
        if not path.is_dir():
            raise DataError(f"{path} does not exist")
        if _is_checkpoint(path):
            return [self._folder(path, path.resolve().parent)]
        return self._run(path)

    def _run(self, path: Path) -> list[_Candidate]:
        root = path.resolve()
        children = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
        children = list(self._distinct(children, root))
        folders = [child for child in children if child.is_dir() and step_in_name(child.name) is not None]
        loose = [child for child in children if _is_tensors(child) and not _OPAQUE.match(child.name)]
        steps = [child for child in loose if not _COPY.search(_stem(child))]
        for copy in loose if steps else ():
            if copy not in steps:
                self.log.note(f"{copy} is left out: by its name it repeats a step; name it to pack it")
        found = [self._folder(child, root) for child in folders if any(map(_is_tensors, child.rglob("*")))]
        return found + list(self._loose(steps or loose))

    def _distinct(self, children: list[Path], root: Path) -> Iterator[Path]:
        """Yield the children without links to one another. Raises DataError for a link that leads out of the run."""
        known = {child.resolve() for child in children if not child.is_symlink()}
        for child in children:
            if not child.is_symlink():
                yield child
            elif not _leads_inside(child, root):
                if not _COPY.search(_stem(child)):
                    raise DataError(_outside(child))
                self.log.note(f"{child} is left out: it is a link to {child.readlink()}")
            elif child.resolve() not in known:
                known.add(child.resolve())
                yield child

    def _loose(self, files: list[Path]) -> Iterator[_Candidate]:
        """Yield the checkpoints among the files of a run; what is none is left out, unless there is no other."""
        refusals: list[DataError] = []
        found = 0
        for file in files:
            try:
                yield self._single(file, alone=len(files) == 1)
                found += 1
            except DataError as error:
                refusals.append(error)
        if refusals and not found:
            raise refusals[0]
        for refusal in refusals:
            self.log.note(f"left out: {refusal}")

    def _single(self, file: Path, alone: bool = True) -> _Candidate:
        told = Told()
        if is_torch(file.name):
            if _is_foreign(file) and not alone:
                raise DataError(f"{file} is no torch file")
            opened = TorchFile(file, self.allow)
            if not opened.records and not alone:
                raise DataError(f"{file} holds no tensors")
            told = told_by_torch(opened)
        elif file.suffix == ".safetensors":
            told = told_by_safetensors(file)
        name = _stem(file)
        snapshot = Snapshot(_step(told, name, file), file, ((file, file.name),))
        return _Candidate(snapshot, step_in_name(name) if told.step is None and step_marked(name) is None else None)

    def _folder(self, folder: Path, root: Path) -> _Candidate:
        if _is_run(folder):
            raise DataError(f"{folder} holds several steps: it is a run of its own; name it alone")
        members = tuple(sorted(_members(folder, root), key=lambda pair: natural(pair[1])))
        told = told_by_trainer(folder)
        if told == Told():
            told = self._told_inside(members)
        return _Candidate(Snapshot(_step(told, folder.name, folder), folder, members))

    def _told_inside(self, members: Sequence[tuple[Path, str]]) -> Told:
        """Return the one step or epoch that the torch files of a folder tell; nothing if they do not agree."""
        found = set()
        for file, path in members:
            if is_torch(file.name) and not _OPAQUE.match(Path(path).name) and not _is_foreign(file):
                found.add(told_by_torch(TorchFile(file, self.allow)))
        found.discard(Told())
        return found.pop() if len(found) == 1 else Told()


def _step(told: Told, name: str, source: Path) -> int:
    for step in (told.step, step_marked(name), told.epoch, step_in_name(name)):
        if step is not None:
            return step
    raise DataError(f"{source} tells no step: store one under the key 'step', or put it into the name, as in step-500")


def _stem(path: Path) -> str:
    name = path.name
    while Path(name).suffix in {*TORCH_SUFFIXES, ".safetensors", ".tar"}:
        name = Path(name).stem
    return name


def _is_tensors(path: Path) -> bool:
    return (is_torch(path.name) or path.suffix in (".safetensors", SUFFIX)) and path.is_file()


def _is_foreign(file: Path) -> bool:
    """Say whether a .bin file is something else than torch writes, as a language model or a vocabulary may be."""
    if file.suffix != ".bin" or _WHOLE.match(file.stem):
        return False
    with file.open("rb") as handle:
        head = handle.read(len(_LEGACY))
    return not head.startswith(b"PK") and head != _LEGACY


def _is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is one checkpoint: weights or shards under names that tell no step."""
    names = [_stem(child) for child in folder.iterdir() if _is_tensors(child)]
    distributed = (folder / INDEX).is_file() and any(folder.glob(f"*{SUFFIX}"))
    return distributed or (any(_WHOLE.match(name) for name in names) and not _is_run(folder))


def _is_run(folder: Path) -> bool:
    """Say whether the files of a folder tell more than one step by their names."""
    loose = [child for child in folder.iterdir() if _is_tensors(child) and not _OPAQUE.match(child.name)]
    names = [_stem(child) for child in loose if child.suffix != SUFFIX]  # those count ranks
    steps = {step_in_name(name) for name in names if not _PART.search(name) and not _COPY.search(name)}
    return len(steps - {None}) > 1


# -- links ---------------------------------------------------------------------------------------------------------
def _leads_inside(path: Path, root: Path) -> bool:
    target = path.resolve()
    return target.exists() and target.is_relative_to(root)


def _outside(path: Path) -> str:
    there = "leads nowhere" if not path.exists() else "leads out of the run"
    return f"{path} is a link that {there} ({path.readlink()}); put the file itself in its place, or name its target"


def _members(folder: Path, root: Path, inside: str = "", above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str]]:
    """Yield the files of a checkpoint folder with their names in it; links inside `root` are followed.

    Raises:
        DataError: a link that leads outside, nowhere or in a circle; a name that could not be unpacked everywhere.
    """
    above = (*above, folder.resolve())
    for child in folder.iterdir():
        name = f"{inside}{child.name}"
        if child.is_symlink() and not _leads_inside(child, root):
            raise DataError(_outside(child))
        if child.is_dir():
            if child.resolve() in above:
                raise DataError(f"{child} is a link to a folder that it lies in; remove it")
            yield from _members(child, root, f"{name}/", above)
        elif child.is_file():
            yield child, name


def refuse_odd_names(snapshot: Snapshot) -> None:
    """Refuse a file whose name could not be written back on every system. Raises DataError."""
    for file, path in snapshot.files:
        if "\\" in path or any(ord(letter) < 32 for letter in path):
            raise DataError(f"{file} has a name that cannot be unpacked everywhere ({path!r}); rename it")
        if not path.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in path):
            raise DataError(f"{file} has a name that is not UTF-8; rename it")
