"""What is computed from an id alone is computed for all ids: its answers become the table that serves.

    encoder(id) -> vector              a module that is told ids alone, with tables and layers inside (item towers)
    layers(table(id)) -> vector        a table, and layers after it that nothing else reaches

Source: the serving form of CLHE (Ma et al. 2024, arXiv 2310.18770). The answers must not take more numbers than what
gave them, and each row is asked for in two places of a batch: what depends on its neighbours is no table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lessen.architectures.replaceable import watched_by_others
from lessen.folding.flow import PASSING, Flow, Step, fixed_values
from lessen.folding.fold import Fold, Found, put, ready

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
        if isinstance(module, nn.Embedding):
            _after_a_table(flow, path, fixed, found)
        elif _told_ids(flow, path) and _reads_only(flow, path, fixed) and _of_ids(flow, path, fixed, found):
            inside = (*inside, f"{path}.")
    return found


# -- a module told ids --------------------------------------------------------------------------------------------
def _told_ids(flow: Flow, path: str) -> bool:
    given = flow.given[path]
    return len(given) == 1 and isinstance(given[0], Tensor) and given[0].dtype in WHOLE


def _of_ids(flow: Flow, path: str, fixed: set[int], found: Found) -> bool:
    module, ids, answer = flow.modules[path], flow.given[path][0], flow.answers[path]
    rows = [flow.tensor(step.reads[0] if step.name != "embedding" else _table(flow, step)).shape[0]
            for step in _steps(flow, path) if step.name in LOOKING_UP and set(step.reads) & fixed]  # fmt: skip
    if not rows or answer.dim() != ids.dim() + 1 or answer.shape[:-1] != ids.shape or not ids.numel():
        return False
    every = torch.arange(min(rows), device=ids.device, dtype=ids.dtype)
    table = _asked(module, every, ids, answer)
    reason = _watched(module) or _dearer(table, _numbers(module), "it has")
    if table is None:
        return False
    if reason:
        found.kept[path] = reason
        return False

    def apply(model: nn.Module) -> None:
        put(model, path, _as_table(table))

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
    rows = _asked(module, table.weight.detach(), given, answer)
    if rows is None:
        return
    reason = _watched(module) or _dearer(rows, table.weight.numel() + _numbers(module), "table and layers have")
    if reason:
        found.kept[f"{path} and {after}"] = reason
        return

    def apply(model: nn.Module) -> None:
        put(model, path, _as_table(rows))
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


def _as_table(rows: Tensor) -> nn.Embedding:
    return nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows.clone())


# -- both ---------------------------------------------------------------------------------------------------------
def _steps(flow: Flow, path: str) -> list[Step]:
    return [step for step in flow.steps if step.path == path or step.path.startswith(f"{path}.")]


def _reads_only(flow: Flow, path: str, fixed: set[int]) -> bool:
    """Tell whether a module reads what it was told, what follows from that, and weights that only it reads."""
    steps = _steps(flow, path)
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
    row, axes = every.shape[1:], said.dim() - 1
    ones = (1,) * (axes - 1)
    try:
        first = said.reshape(-1, said.shape[-1])[:1]
        if not _close(module(seen.reshape(-1, *row)[:1].reshape(1, *ones, *row)).reshape(1, -1), first):
            return None
        chunks = []
        for rows in torch.split(every, CHUNK):
            answer = module(rows.reshape(len(rows), *ones, *row)).reshape(len(rows), -1)
            other = module(rows.flip(0).reshape(*ones, len(rows), *row)).reshape(len(rows), -1)
            if not _close(other.flip(0), answer):
                return None
            chunks.append(answer)
    except Exception:  # whatever a user's forward raises for rows without their neighbours
        return None
    return torch.cat(chunks).detach()


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(other.abs().max()) if other.numel() else 0.0
    bound = CLOSE if other.dtype == torch.float64 else 1e-5
    return not other.numel() or float((one - other).abs().max()) <= bound * max(scale, 1e-30)


def _numbers(module: nn.Module) -> int:
    own = {id(tensor): tensor.numel() for tensor in (*module.parameters(), *module.buffers())}
    return sum(own.values())


def _watched(module: nn.Module) -> str:
    return next((reason for part in module.modules() if (reason := watched_by_others(part))), "")


def _dearer(table: Tensor | None, own: int, whose: str) -> str:
    if table is None or table.numel() <= own:
        return ""
    return f"answers to all {len(table):,} ids take {table.numel():,} numbers, {whose} {own:,}"
