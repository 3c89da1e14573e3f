"""Many questions about one picture in one sequence: each sees the picture and itself, as if it were asked alone.

picture [P] | q q q q q | q q q q q | q q q q q q q | ...      positions of every question go on at P

Attention is computed for the picture, from questions to it, and within each question: no N x N map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import InputError
from lessen.tasks.multimodal.grid_model import TOKENS, prefix
from lessen.tasks.multimodal.words import encode

NAME = "lessen_packed_questions"
TINY = 1e-6


@dataclass(frozen=True)
class Packing:
    """How a sequence is divided, the same for all rows of a batch."""

    prefix: int
    """P, tokens of the picture and what stands before it."""
    groups: tuple[tuple[int, int], ...]
    """(questions, tokens of each), one group after another."""


def packed(questions: Sequence[Sequence[str]], frames: int, tokens: int = TOKENS) -> tuple[dict[str, Any], Tensor]:
    """Return inputs that ask all questions of each row about its picture, and where each answer is read.

    Args:
        questions: of each of B pictures or films, of the same lengths in the same order for all.

    Returns:
        input_ids and position_ids [B,N] with their packing; columns int64 [questions].

    Raises:
        InputError: the lengths differ between rows.
    """
    before = prefix(frames, tokens)
    words = [[encode(question) for question in row] for row in questions]
    lengths = [len(one) for one in words[0]]
    if any([len(one) for one in row] != lengths for row in words):
        raise InputError("packed questions must have the same lengths in the same order for every picture")
    ids = torch.tensor([before + [token for one in row for token in one] for row in words])
    places = [*range(len(before)), *(len(before) + place for length in lengths for place in range(length))]
    groups = tuple((len(list(run)), length) for length, run in groupby(lengths))
    positions = torch.tensor(places).expand(len(ids), -1)
    columns = len(before) - 1 + torch.tensor(lengths).cumsum(0)
    return {"input_ids": ids, "position_ids": positions, "packing": Packing(len(before), groups)}, columns


@dataclass
class Guide:
    """Where the last token of each question should look in which layer, and how far it does not."""

    shown: Tensor
    """float32 [B, questions, P], shares of the tokens that the answer is read from; zeros where nothing is said."""
    words: tuple[int, ...]
    """Layers in which it should look at its own words."""
    picture: tuple[int, ...]
    """Layers in which it should look at what is shown, by the mean over heads."""
    losses: list[Tensor] = field(default_factory=list)

    def look(self, layer: int, first: int, weights: Tensor) -> None:
        """Take in attention [B, heads, questions, P + words] of the last tokens of a group from question `first` on."""
        mean, tokens = weights.mean(1), self.shown.shape[-1]
        if layer in self.words:
            self.losses.append(-mean[..., tokens:].sum(-1).clamp_min(TINY).log().mean())
        if layer in self.picture:
            wanted = self.shown[:, first : first + mean.shape[1]]
            seen = -(wanted * mean[..., :tokens].clamp_min(TINY).log()).sum(-1)
            self.losses.append(seen.sum() / wanted.sum().clamp_min(1.0))


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let the decoder of `model` attend as packed questions do, for inputs of `packed`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config = model.model.language_model.config
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, *, packing: Packing, scaling: float,
    guide: Guide | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return what heads [B,H,N,d] attend to, [B,N,H,d]."""
    picture = packing.prefix
    seen_key, seen_value = key[:, :, :picture], value[:, :, :picture]
    done = [F.scaled_dot_product_attention(query[:, :, :picture], seen_key, seen_value, is_causal=True, scale=scaling)]
    start, first = picture, 0
    for count, length in packing.groups:
        stop = start + count * length
        asked = query[:, :, start:stop] * scaling
        own_query, own_key, own_value = (
            _by_question(x, count) for x in (asked, key[:, :, start:stop], value[:, :, start:stop])
        )
        own = own_query @ own_key.transpose(-1, -2)
        own = own.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        scores = torch.cat([asked @ seen_key.transpose(-1, -2), own.flatten(2, 3)], -1).softmax(-1)
        if guide is not None:
            guide.look(module.layer_idx, first, _by_question(scores, count)[:, :, :, -1])
        outside, inside = torch.split(scores, [picture, length], -1)
        inside = _by_question(inside, count) @ own_value
        done.append(outside @ seen_value + inside.flatten(2, 3))
        start, first = stop, first + count
    return torch.cat(done, 2).transpose(1, 2), None


def _by_question(x: Tensor, count: int) -> Tensor:
    """Return x [B,H,count*l,d] as [B,H,count,l,d]."""
    return x.reshape(*x.shape[:2], count, -1, x.shape[-1])
