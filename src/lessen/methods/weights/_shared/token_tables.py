"""The token embedding of a Transformer and the head over its rows: one matrix where they are tied, stored once.

ids -> embedding [rows, width] -> blocks -> head [rows, width] -> logits
             '------ the same codes -----------'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lessen.architectures.direct_reads import direct_reads
from lessen.architectures.stacks import find_stacks
from lessen.errors import InputError, NothingMatchedError
from lessen.method import Context
from lessen.methods.sites import Scope, Site

SAMPLE = 16
"""Rows of a table that are looked up to see what its forward does."""


@dataclass(frozen=True)
class TokenTable:
    """One token embedding with the layers that hold its matrix as well."""

    table: Site
    heads: tuple[Site, ...]
    others: tuple[Site, ...]
    """Further embeddings over the same matrix (an encoder's and a decoder's)."""
    untied: Site | None
    """A head over the same vocabulary with a matrix of its own, where there is no tied one."""
    equal: bool
    """Whether head and embedding were two tensors of equal values: tied in the file, though not in the model."""

    def stand_in(self) -> nn.Linear:
        """Return a linear layer [width to rows] whose weight is the embedding's, so that tools of layers take it."""
        table = self.table.module
        made: nn.Linear = nn.Linear(table.embedding_dim, table.num_embeddings, bias=False, device="meta")
        made.weight = table.weight
        return made


def token_tables(model: nn.Module, scope: Scope, context: Context, scaled: bool = False) -> list[TokenTable]:
    """Return the token embeddings that can be replaced; others go to `context.findings["skipped"]` with the reason.

    Args:
        scaled: take tables too that multiply their rows (`row_factor`); what replaces them has to do the same.
    """
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    read = direct_reads(model)
    found = []
    for table in _embeddings(model):
        reason = (
            scope.reason(paths[table]) or _skipped(model, table, paths, scope) or _obstacle(model, table, read, scaled)
        )
        if reason is None:
            found.append(_with_heads(model, table, paths, scope))
        else:
            context.findings.setdefault("skipped", {})[paths[table][0]] = reason
    return found


def _embeddings(model: nn.Module) -> list[Any]:
    """Return the plain token embeddings, those that share a matrix once."""
    try:
        stacks = find_stacks(model)
    except (NothingMatchedError, InputError):  # no Transformer, or one that only its own methods refuse
        return []
    found: dict[int, Any] = {}
    for stack in stacks:
        if (
            stack.modality == "text"
            and stack.embedding is not None
            and isinstance(stack.embedding.module, nn.Embedding)
        ):
            found.setdefault(id(stack.embedding.module.weight), stack.embedding.module)
    return list(found.values())


def _skipped(model: nn.Module, table: Any, paths: dict[nn.Module, list[str]], scope: Scope) -> str | None:
    """Say that a layer which is to be left alone holds the matrix too, or None."""
    left = Scope(scope.method, skip=scope.skip)
    other = next((paths[holder][0] for holder in _holders(model, table) if left.reason(paths[holder])), None)
    return None if other is None else f"shares its matrix with {other}, which is in `skip`"


def _obstacle(model: nn.Module, table: Any, read: dict[nn.Module, str], scaled: bool) -> str | None:
    if not table.weight.is_floating_point() or table.weight.is_meta or table.weight.numel() == 0:
        return "its weight is empty or not floating point"
    for holder in _holders(model, table):
        base = nn.Embedding if isinstance(holder, nn.Embedding) else nn.Linear
        known = scaled and isinstance(holder, nn.Embedding) and row_factor(holder) is not None
        if type(holder).forward is not base.forward and not known:
            return f"its weight is read by a {type(holder).__name__} with a forward of its own"
        if holder in read:
            return f"the forward of {read[holder]} reads its weight directly"
        if holder._forward_hooks or holder._forward_pre_hooks:
            return "carries forward hooks that a replacement would lose"
        if getattr(holder, "max_norm", None) is not None:
            return "renormalises its rows at lookup (max_norm)"
    return None


@torch.no_grad()
def row_factor(table: nn.Embedding) -> float | None:
    """Return what a table multiplies its rows by, 1 for a plain one, None where its forward does something else.

    Gemma's tables keep it as `embed_scale`, and round it to the type of the rows.
    """
    if type(table).forward is nn.Embedding.forward:
        return 1.0
    factor = getattr(table, "embed_scale", None)
    if not isinstance(factor, (float, torch.Tensor)) or (isinstance(factor, torch.Tensor) and factor.numel() != 1):
        return None
    rows = table.weight[:SAMPLE]
    rounded = torch.as_tensor(factor).to(rows)
    same = torch.equal(table(torch.arange(len(rows), device=rows.device)), rows * rounded)
    return float(rounded) if same else None


def _holders(model: nn.Module, table: Any) -> list[Any]:
    return [m for m in model.modules() if any(p is table.weight for p in m.parameters(recurse=False))]


def _with_heads(model: nn.Module, table: Any, paths: dict[nn.Module, list[str]], scope: Scope) -> TokenTable:
    sites = {module: Site(tuple(paths[module]), module) for module in _holders(model, table)}
    heads = [site for module, site in sites.items() if isinstance(module, nn.Linear)]
    others = [s for module, s in sites.items() if isinstance(module, nn.Embedding) and module is not table]
    untied = None if heads else _head(model, table, paths, scope)
    equal = untied is not None and torch.equal(untied.module.weight, table.weight)
    if equal and untied is not None:
        heads, untied = [untied], None
    return TokenTable(sites[table], tuple(heads), tuple(others), untied, equal)


def _head(model: nn.Module, table: Any, paths: dict[nn.Module, list[str]], scope: Scope) -> Site | None:
    """Return the last plain linear layer from the width to the vocabulary, where `scope` takes it."""
    shape = (table.num_embeddings, table.embedding_dim)
    fits = [m for m in model.modules() if type(m) is nn.Linear and tuple(m.weight.shape) == shape]
    return Site(tuple(paths[fits[-1]]), fits[-1]) if fits and not scope.reason(paths[fits[-1]]) else None
