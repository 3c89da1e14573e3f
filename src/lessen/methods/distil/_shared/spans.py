"""Phrases in token sequences, and how a model's neighbouring tokens go together inside one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lessen.errors import TaskError
from lessen.methods.distil._shared.places import Places
from lessen.task import Task

OPENERS = frozenset(
    word
    for line in (
        "a an the this that these those my your his her its our their some any no each every",
        "in on at by for with from to of into onto over under between through during before after about against",
        "within without as is are was were be been being am do does did has have had can could will would shall",
        "should may might must and or but nor so yet if when while because although though which who whom whose",
        "where what how",
    )
    for word in line.split()
)
"""Words of closed classes: a phrase begins with the first of a run of them."""
WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def phrases(text: str) -> list[tuple[int, int]]:
    """Return (start, end) in characters of the phrases of a text: runs of words up to a mark or the next opener."""
    found: list[tuple[int, int]] = []
    inside = opening = False
    for match in WORDS.finditer(text):
        word = match.group().lower()
        if not (word[0].isalnum() or word[0] == "_"):
            inside = False
            continue
        opens = word in OPENERS
        if inside and not (opens and not opening):
            found[-1] = (found[-1][0], match.end())
        else:
            found.append(match.span())
        inside, opening = True, opens
    return found


def reader(task: Task, vocabulary: int) -> Callable[[int], str]:
    """Return what gives the text of a token.

    Raises:
        TaskError: the task has no tokenizer, and tokens are not bytes.
    """
    tokenizer: Any = getattr(task, "tokenizer", None)
    if tokenizer is not None:
        known: dict[int, str] = {}

        def text(token: int) -> str:
            if token not in known:
                known[token] = str(tokenizer.decode([token]))
            return known[token]

        return text
    if vocabulary <= 256:
        return chr
    raise TaskError(f"task {task.name!r} has no tokenizer, so that no phrase can be found; set span_weight to 0")


def pairs(seen: Places, text: Callable[[int], str]) -> Tensor:
    """Return which places, and the one after each, predict two tokens of one phrase, bool [B, T - 1]."""
    tokens, judged = seen.following.tolist(), seen.judged.tolist()
    rows = []
    for row, known in zip(tokens, judged, strict=True):
        parts = [text(token) if told else "\n" for token, told in zip(row, known, strict=True)]
        spans = _span_of(parts)
        rows.append([a == b != -1 and m and n for a, b, m, n in zip(spans, spans[1:], known, known[1:], strict=False)])
    return torch.tensor(rows, dtype=torch.bool, device=seen.judged.device)


def _span_of(parts: list[str]) -> list[int]:
    """Return the phrase that each token's first visible character stands in, -1 where none."""
    whole = "".join(parts)
    owner = [-1] * len(whole)
    for number, (start, end) in enumerate(phrases(whole)):
        owner[start:end] = [number] * (end - start)
    found, at = [], 0
    for part in parts:
        lead = len(part) - len(part.lstrip())
        found.append(owner[at + lead] if part.strip() else -1)
        at += len(part)
    return found


def span_loss(student: Tensor, teacher: Tensor, together: Tensor) -> Tensor:
    """Return the mean distance between normalised products of neighbouring probabilities, a scalar; 0 without a pair.

    The product of two softmaxes, normalised, is the softmax of the sum of their logits: nothing is as small as 1e-8.

    Args:
        student, teacher: logits [B, T, V].
        together: bool [B, T - 1], see `pairs`.
    """
    if not bool(together.any()):
        return student.sum() * 0.0
    left, right = (
        (logits[:, :-1][together].float() + logits[:, 1:][together].float()).softmax(dim=1)
        for logits in (student, teacher.detach())
    )
    distances: Tensor = torch.linalg.vector_norm(left - right, dim=1)
    return distances.mean()
