"""What is computed from an id alone is computed for all ids: its answers become the table that serves.

    encoder(id) -> vector              a module that is told ids alone, with tables and layers inside (item towers)
    layers(table(id)) -> vector        a table, and layers after it that nothing else reaches

Source: the serving form of CLHE (Ma et al. 2024, arXiv 2310.18770). The answers must not take more numbers than what
gave them, and each row is asked for twice, in other places beside other rows: what depends on its neighbours is no
table. Nor is what answers ids that the table would refuse, as a module does that wraps, cuts off or counts its ids; ids
below zero may count from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.intake import copied
from lessen.folding.flow import PASSING, Flow, Step, fixed_values
from lessen.folding.fold import Fold, Found, put, ready, watched
from lessen.stored.tables.signed_ids import SignedIds

CHUNK = 1024
"""Rows that are asked for at once."""
CLOSE = 1e-10
LOOKING_UP = frozenset({"embedding", "__getitem__", "index_select", "take_along_dim"})
WHOLE = (torch.int64, torch.int32)


def find(flow: Flow) -> Found:
    """Return a fold for each outermost module told ids alone, and each table with what follows it alone."""
    found, inside = Found(), tuple[str, ...]()
    fixed = fixed_values(flow)
    for path, module in flow.modules.items():
        if not path or path.startswith(inside) or flow.calls[path] != 1 or not isinstance(flow.answers[path], Tensor):
            continue
        if _is_served(module):
            inside = (*inside, f"{path}.")
            continue
        if isinstance(module, nn.Embedding):
            _after_a_table(flow, path, fixed, found)
            continue
        folds = _told_ids(flow, path) and _reads_only(flow, path, fixed) and _of_ids(flow, path, fixed, found)
        if folds:
            inside = (*inside, f"{path}.")
    return found


def _is_served(module: nn.Module) -> bool:
    """Tell whether a module is what an earlier round made."""
    return isinstance(module, nn.Sequential) and len(module) > 0 and isinstance(module[0], SignedIds)


# -- a module told ids --------------------------------------------------------------------------------------------
def _told_ids(flow: Flow, path: str) -> bool:
    given = flow.given[path]
    return len(given) == 1 and isinstance(given[0], Tensor) and given[0].dtype in WHOLE


def _of_ids(flow: Flow, path: str, fixed: set[int], found: Found) -> bool:
    module, ids, answer = flow.modules[path], flow.given[path][0], flow.answers[path]
    looks = [step for step in flow.inside(path) if step.name in LOOKING_UP and len(step.reads) > 1]
    tables = [_table(flow, step) if step.name == "embedding" else step.reads[0] for step in looks]
    rows = [flow.tensor(value).shape[0] for value in tables if value in fixed]
    if not rows or answer.dim() != ids.dim() + 1 or answer.shape[:-1] != ids.shape or not ids.numel():
        return False
    every = torch.arange(min(rows), device=ids.device, dtype=ids.dtype)
    dearer = _dearer(len(every), answer.shape[-1], _numbers(module), "it has")
    table = _asked(module, every[:CHUNK] if dearer else every, ids, answer)
    if table is None:
        return False
    signed, wider = _beside(module, len(every), ids)
    reason = watched(module) or dearer or wider
    if reason:
        found.kept[path] = reason
        return False

    def apply(model: nn.Module) -> None:
        made: nn.Module = _as_table(table, model.get_submodule(path))
        put(model, path, nn.Sequential(SignedIds(len(every)), made) if signed else made)

    found.folds.append(Fold("serving table", path, "", apply))
    return True


def _table(flow: Flow, step: Step) -> int:
    """Return the table of a look-up, which `embedding` is told in either place."""
    return next((value for value in step.reads if flow.tensor(value).is_floating_point()), step.reads[0])


# -- layers after a table -----------------------------------------------------------------------------------------
def _after_a_table(flow: Flow, path: str, fixed: set[int], found: Found) -> None:
    table = flow.modules[path]
    step = flow.step_of(path)
    if not isinstance(table, nn.Embedding) or table.max_norm is not None or step is None:
        return
    if ready(flow, path, (nn.Embedding,)):
        return
    readers = flow.readers(step.makes[0])
    after = None if not readers else _only_reader(flow, readers, fixed)
    if after is None:
        return
    module, given, answer = flow.modules[after], flow.answers[path], flow.answers[after]
    if answer.shape[:-1] != given.shape[:-1] or not given.numel():
        return
    every, own = table.weight.detach(), table.weight.numel() + _numbers(module)
    dearer = _dearer(len(every), answer.shape[-1], own, "table and layers have")
    rows = _asked(module, every[:CHUNK] if dearer else every, given, answer)
    if rows is None:
        return
    reason = watched(module) or dearer
    if reason:
        found.kept[f"{path} and {after}"] = reason
        return

    def apply(model: nn.Module) -> None:
        put(model, path, _as_table(rows, model.get_submodule(path)))
        put(model, after, nn.Identity())

    found.folds.append(Fold("serving table", after, path, apply))


def _only_reader(flow: Flow, readers: list[Step], fixed: set[int]) -> str | None:
    """Return the outermost module that alone reads a value, is told nothing else, and was called once."""
    paths = {step.path for step in readers}
    first = min(paths, key=len)
    parts = first.split(".") if first else []
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        alone = all(one == path or one.startswith(f"{path}.") for one in paths)
        given = flow.given.get(path, ())
        single = len(given) == 1 and isinstance(given[0], Tensor)
        told = single and given[0].is_floating_point() and flow.calls[path] == 1
        if alone and told and isinstance(flow.answers.get(path), Tensor) and _reads_only(flow, path, fixed):
            return None if isinstance(flow.modules[path], nn.Identity) else path
    return None


def _as_table(rows: Tensor, old: nn.Module) -> nn.Embedding:
    """Return the table of `rows`; the forward around it may ask it for the padding row of the `old` module."""
    padding = getattr(old, "padding_idx", None)
    padding = padding if isinstance(padding, int) else None
    return nn.Embedding(rows.shape[0], rows.shape[1], padding_idx=padding, _weight=rows.clone())


# -- both ---------------------------------------------------------------------------------------------------------
def _reads_only(flow: Flow, path: str, fixed: set[int]) -> bool:
    """Tell whether a module reads what it was told, what follows from that, and weights that only it reads."""
    steps = flow.inside(path)
    known, own = {flow.number_of(flow.given[path][0])}, set(map(id, steps))
    for step in steps:
        if not all(value in known or value in fixed for value in step.reads):
            return False
        if any(value in flow.held and any(id(user) not in own for user in flow.users[value]) for value in step.reads):
            return False
        known.update(step.makes)
    return any(step.name not in PASSING for step in steps)


@torch.no_grad()
def _asked(module: Callable[[Tensor], Tensor], every: Tensor, seen: Tensor, said: Tensor) -> Tensor | None:
    """Return a module's answers to `every` row [rows,width], or None where an answer depends on what stands beside it.

    Args:
        every: rows that it may be told, [rows] or [rows,in].
        seen: what it was told, [*] or [*,in].
        said: what it answered, [*,width].
    """
    row, ones = every.shape[1:], (1,) * (said.dim() - 2)

    def ask(rows: Tensor, *sides: int) -> Tensor:
        return module(rows.reshape(*sides, *row).clone()).reshape(len(rows), -1)  # it may write over its rows

    try:
        if not _close(ask(seen.reshape(-1, *row)[:1], 1, *ones), said.reshape(-1, said.shape[-1])[:1]):
            return None
        found = torch.cat([ask(rows, len(rows), *ones) for rows in torch.split(every, CHUNK)])
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).to(every.device)
        for part in torch.split(order, CHUNK):
            twice = torch.cat([part, part[: len(part) // 2 + 1]])  # rows that stand there again may count for more
            if not _close(ask(every[twice], *ones, len(twice)), found[twice]):
                return None
    except Exception:  # whatever a user's forward raises for rows without their neighbours
        return None
    return found.detach()


@torch.no_grad()
def _beside(module: nn.Module, rows: int, seen: Tensor) -> tuple[bool, str]:
    """Return whether ids below zero count from the end, and why no table answers as the module does, or "".

    A copy on the processor is asked: an id out of range there raises, and takes no accelerator with it.
    """
    here = copied(module).cpu()

    def answer(number: int) -> Any:
        try:
            return here(torch.full((1,) * seen.dim(), number, dtype=seen.dtype))
        except Exception:  # IndexError of torch's look-ups, and what a user's forward raises for an id it does not know
            return None

    if answer(0) is None:
        return False, "it cannot be asked on the processor which ids it refuses"
    first, last = answer(-rows), answer(-1)
    signed = first is not None and last is not None and _close(first, answer(0)) and _close(last, answer(rows - 1))
    outside = (rows, -rows - 1) if signed else (-1, rows)
    beside = next((number for number in outside if answer(number) is not None), None)
    return signed, "" if beside is None else f"it answers id {beside} too, which a table of {rows:,} rows would refuse"


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(other.abs().max()) if other.numel() else 0.0
    bound = CLOSE if other.dtype == torch.float64 else 1e-5
    return not other.numel() or float((one - other).abs().max()) <= bound * max(scale, 1e-30)


def _numbers(module: nn.Module) -> int:
    own = {id(tensor): tensor.numel() for tensor in (*module.parameters(), *module.buffers())}
    return sum(own.values())


def _dearer(rows: int, width: int, own: int, whose: str) -> str:
    if rows * width <= own:
        return ""
    return f"answers to all {rows:,} ids take {rows * width:,} numbers, {whose} {own:,}"
