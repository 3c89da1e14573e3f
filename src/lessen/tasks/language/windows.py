"""Long documents in windows that overlap, so that every token is judged once and with enough before it.

window 1   0 ............ W              judged: 1 ... W
window 2        S ............ S + W     judged:        W ... S + W
window 3             2S ............ 2S + W             ...
judged tokens of every window but the first have at least W - S tokens before them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

UNJUDGED = -100
"""Label of a token that is context only."""
ROWS = 128
"""Tokens whose probabilities over the vocabulary are held at once, float32."""


@dataclass(frozen=True)
class Window:
    """A piece of one document."""

    ids: Tensor
    """int64 [tokens]"""
    labels: Tensor
    """int64 [tokens]: the tokens that are judged, each at its own place; `UNJUDGED` elsewhere."""


def windows(ids: Tensor, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows of one document; its first token is context, never judged.

    Args:
        ids: int64 [tokens].
        window: largest number of tokens in a window.
        stride: tokens from the start of one window to the start of the next, less than `window`.
    """
    done, start = 1, 0
    while done < len(ids):
        end = min(start + window, len(ids))
        labels = torch.full((end - start,), UNJUDGED, dtype=torch.int64)
        labels[done - start :] = ids[done:end]
        yield Window(ids[start:end], labels)
        done, start = end, start + stride


def judged(logits: Tensor, labels: Tensor) -> tuple[float, int, int]:
    """Return the sums over judged tokens: negative log-likelihood in nats, tokens, and those predicted right.

    Args:
        logits: [tokens, vocabulary] of any floating dtype; row t predicts token t + 1.
        labels: int64 [tokens] of `Window`.
    """
    nll, right, tokens = 0.0, 0, 0
    for rows, following in zip(torch.split(logits[:-1], ROWS), torch.split(labels[1:], ROWS), strict=True):
        known = following != UNJUDGED
        rows, following = rows[known].float(), following[known]
        nll += float(F.cross_entropy(rows, following, reduction="sum").double())
        right += int((rows.argmax(dim=1) == following).sum())
        tokens += len(following)
    return nll, tokens, right


def packed(documents: list[Tensor], window: int, end: int | None) -> Tensor:
    """Return training rows int64 [rows, window]: documents one after another, `end` between them, the rest left out."""
    parts = [part for ids in documents for part in (ids, *([torch.tensor([end])] if end is not None else []))]
    joined = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
    rows = len(joined) // window
    return joined[: rows * window].view(rows, window)


def started(rows: Tensor, first: list[int]) -> Tensor:
    """Return rows [*, tokens] with the same first tokens, or labels, in front of each."""
    if not first:
        return rows
    return torch.cat([rows.new_tensor(first).expand(*rows.shape[:-1], len(first)), rows], -1)
