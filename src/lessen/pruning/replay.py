"""Asking a model again with one part changed, without computing what stands before that part.

record    embed ─ block 0 ─ block 1 ─ ... ─ block n ─ head     answers of all blocks are kept
ask at l  embed ─ (kept)  ─ (kept)  ─ block l ─ ... ─ head     so a scan of all blocks costs half of what it would
                                                                the other tower of a dual encoder: all kept
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lessen.errors import InputError
from lessen.pruning.layout import Layer, Layout


class Replay:
    """Keeps what every block answers while `question` runs, and asks it again from any block on.

    Args:
        question: runs the model any number of times, always with the same inputs in the same order, and returns a
            number.
    """

    def __init__(self, layout: Layout, question: Callable[[], float]) -> None:
        self.layout, self.question = layout, question
        self._kept: dict[str, list[Any]] = {}
        self.value = self._record()
        """What the question gives with nothing changed since."""

    def renew(self) -> float:
        """Record again, after the model was changed for good; returns the new value."""
        self.value = self._record()
        return self.value

    def ask(self, layer: Layer) -> float:
        """Return what the question gives now, where nothing before `layer` has changed.

        Raises:
            InputError: the model was called in another way than when it was recorded.
        """
        before = [one.path for one in self.layout.layers if one.stack != layer.stack]
        before += [one.path for one in self.layout.of(layer.stack) if one.block.index < layer.block.index]
        with torch.no_grad(), self._answering(before):
            return float(self.question())

    def _record(self) -> float:
        kept: dict[str, list[Any]] = {layer.path: [] for layer in self.layout.layers}
        handles = [
            layer.block.module.register_forward_hook(lambda _m, _a, output, path=layer.path: kept[path].append(output))
            for layer in self.layout.layers
        ]
        try:
            with torch.no_grad():
                value = float(self.question())
        finally:
            for handle in handles:
                handle.remove()
        self._kept = kept
        return value

    @contextmanager
    def _answering(self, paths: list[str]) -> Iterator[None]:
        modules: dict[str, Any] = {one.path: one.block.module for one in self.layout.layers}
        own = {path: vars(modules[path]).get("forward") for path in paths}
        try:
            for path in paths:
                modules[path].forward = _from(iter(self._kept[path]), path)
            yield
        finally:
            for path in paths:
                vars(modules[path]).pop("forward", None)
                if own[path] is not None:
                    modules[path].forward = own[path]


def _from(answers: Iterator[Any], path: str) -> Callable[..., Any]:
    def forward(*_arguments: Any, **_keywords: Any) -> Any:
        try:
            return next(answers)
        except StopIteration:
            raise InputError(f"{path} is called more often than when the model was first asked") from None

    return forward
