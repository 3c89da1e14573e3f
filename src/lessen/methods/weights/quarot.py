"""QuaRot: hidden states rotated so that none of their values sticks out, weights rotated to match."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.direct_reads import direct_reads
from lessen.architectures.parts import Attention, Block, Part, Stack
from lessen.architectures.stacks import find_stacks
from lessen.errors import InputError, NothingMatchedError
from lessen.method import Card, Context, Method
from lessen.methods.sites import replace_everywhere
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.rotating import (
    Gains,
    check_residual,
    fold_gain,
    plain,
    rotate_columns,
    rotate_rows,
)
from lessen.stored.linears.rotated import RotatedInput, RotatedNorm, draw_signs
from lessen.task import Task

SAME = {torch.float32: 1e-4, torch.float64: 1e-8}
SAME_16_BIT = 5e-2


class QuaRot(Method):
    """Rotate the residual stream, the values of each head and the hidden units; without rounding, answers stay.

    Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", NeurIPS 2024 (arXiv 2404.00456).
    Randomised Hadamard rotations are multiplied into the weights that write and read; gains of norms go into what
    reads them. Follow it with `rtn` or `gptq`, whose groups then hold no outliers.
    Differs from the paper: weights only, so that keys and queries are not rotated and heads are not mixed; embedding
    and a head that is tied to it stay one rotated matrix, for which the last norm turns back and forth (two small
    rotations a token) in place of taking its gain into the head; hidden units are rotated in front of the down
    projection as a stored module; sizes without a Hadamard matrix take a cosine transform for their odd part.
    Streams that are normed by layer norms, on the residual, or behind a branch are not rotated; heads and hidden units
    are. The result is compared with the model as it was on one batch, and refused if it answers otherwise.
    """

    card = Card(
        name="quarot",
        family="weights",
        summary="Rotate hidden states and weights so that outliers are spread before weights are rounded.",
        acts_on=("blocks",),
        source="Ashkboos et al. 2024, arXiv 2404.00456",
        claims=frozenset(),
    )
    residual: bool = Field(True, description="rotate the residual stream, where its norms are RMS norms")
    heads: bool = Field(True, description="rotate values within each head")
    hidden: bool = Field(True, description="rotate hidden units in front of the down projection, as the model runs")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Rotate all blocks. Raises NothingMatchedError; InputError for a model that then answers otherwise."""
        if any(isinstance(module, (RotatedInput, RotatedNorm)) for module in model.modules()):
            raise self.nothing_matched(model, "it is rotated already")
        model = linearised(model)
        try:
            stacks = find_stacks(model)
        except NothingMatchedError as error:
            raise self.nothing_matched(model, str(error)) from error
        before = _answer(model, task)
        done = {"residual": 0, "heads": 0, "hidden": 0}
        for stack in stacks:
            model = self._stack(model, stack, len(stacks), done, context)
        if not any(done.values()):
            raise self.nothing_matched(model, "; ".join(context.findings.get("left", {}).values()))
        context.findings["rotated"] = done
        _check(before, _answer(model, task), type(model).__name__)
        return model

    def _stack(self, model: nn.Module, stack: Stack, stacks: int, done: dict[str, int], context: Context) -> nn.Module:
        left = context.findings.setdefault("left", {})
        if self.residual:
            reason = "it feeds another stack" if stacks > 1 else check_residual(stack)
            if reason is None:
                model = self._residual(model, stack, context)
                done["residual"] += len(stack.blocks)
            else:
                left[stack.path] = f"the residual stream of {stack.path or 'the model'} stays: {reason}"
                context.log.note(left[stack.path])
        read = direct_reads(model)
        for block in stack.blocks:
            attention, feed = block.attention, block.feed_forward
            if self.heads and attention is not None and plain(attention.value) and plain(attention.output):
                self._heads(attention, context)
                done["heads"] += 1
            if self.hidden and feed is not None and plain(feed.down) and feed.down.module not in read:
                model = self._hidden(model, feed.down, context)
                done["hidden"] += 1
        if not left:
            del context.findings["left"]
        return model

    def _residual(self, model: nn.Module, stack: Stack, context: Context) -> nn.Module:
        signs = draw_signs(stack.width, context.generator)
        for block in stack.blocks:
            self._block(block, signs)
        assert stack.embedding is not None and stack.final_norm is not None  # noqa: PT018 - `check_residual` saw both
        table, norm = stack.embedding.module, stack.final_norm.module
        gain = Gains.of(norm)
        assert gain is not None
        rotate_columns(table, signs)
        owners = [
            m for m in model.modules() if m is not table and getattr(m, "_parameters", {}).get("weight") is table.weight
        ]
        made = RotatedNorm(stack.width, Gains.eps(norm), again=bool(owners)).to(norm.weight.device)
        made.gain.copy_(gain)
        made.signs.copy_(signs)
        return replace_everywhere(model, norm, made)

    def _block(self, block: Block, signs: Tensor) -> None:
        attention, feed, norms = block.attention, block.feed_forward, block.norms
        assert attention is not None and feed is not None  # noqa: PT018
        readers = {id(norms.before_attention): [attention.query, attention.key, attention.value]}
        readers.setdefault(id(norms.before_feed_forward), []).extend([feed.up, *([feed.gate] if feed.gate else [])])
        for norm in {id(n): n for n in (norms.before_attention, norms.before_feed_forward) if n is not None}.values():
            layers = {part.path: part.module for part in readers[id(norm)]}
            fold_gain(norm.module, list(layers.values()))
            for layer in layers.values():
                rotate_columns(layer, signs)
        for part in (attention.output, feed.down):
            rotate_rows(part.module, signs)

    def _heads(self, attention: Attention, context: Context) -> None:
        signs = draw_signs(attention.head_dim, context.generator)
        for rows in attention.rows("value"):
            rotate_rows(attention.value.module, signs, rows)
        for first in range(0, attention.heads * attention.head_dim, attention.head_dim):
            columns = torch.arange(first, first + attention.head_dim)
            rotate_columns(attention.output.module, signs, columns)

    def _hidden(self, model: nn.Module, down: Part, context: Context) -> nn.Module:
        layer: Any = down.module
        signs = draw_signs(layer.in_features, context.generator)
        rotate_columns(layer, signs)
        return replace_everywhere(model, layer, RotatedInput.around(layer, signs))


@torch.no_grad()
def _answer(model: nn.Module, task: Task) -> Tensor:
    return task.forward(model.eval(), task.example_batch()).clone()


def _check(before: Tensor, after: Tensor, name: str) -> None:
    tolerance = SAME.get(before.dtype, SAME_16_BIT)
    away = float((after.double() - before.double()).norm() / before.double().norm().clamp(min=1e-30))
    if not away <= 10 * tolerance:
        raise InputError(
            f"{name} answers otherwise once its states are rotated (relative difference {away:.1e}): something reads "
            "them that is neither norm nor linear layer; try residual=false, heads=false"
        )
