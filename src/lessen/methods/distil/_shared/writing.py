"""A language model that continues its own texts while it trains: sampling, correction, and a memory of texts.

prompt | tokens drawn from the student ........ | after its end token: nothing
       | drawn ... j-1 | teacher's word at j | drawn anew ...        (one correction, arXiv 2407.10068)
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.methods.distil._shared.divergences import divergence
from lessen.methods.distil._shared.places import Places, ids_of, mask_of, places, written
from lessen.task import Task, call_model
from lessen.train.teachers import evaluating


class Writer:
    """Continues the rows of batches.

    Args:
        prompt: tokens that are kept of each row; None: up to the first token that is judged, where the labels leave a
            beginning out, else half of the row.
        temperature: divides the logits before drawing; 0 takes the most probable token.
        generator: draws.
    """

    def __init__(self, task: Task, prompt: int | None, temperature: float, generator: torch.Generator) -> None:
        self.task, self.prompt, self.temperature, self.generator = task, prompt, temperature, generator

    def start(self, batch: Any) -> int:
        """Return the first place that is written anew, the same in each row.

        Raises:
            TaskError: rows are padded on the left, or there is nothing after the prompt.
        """
        ids, mask = ids_of(self.task, batch), mask_of(self.task, batch)
        shortest = ids.shape[1]
        if mask is not None:
            if not bool(mask[:, 0].all()):
                raise TaskError("rows padded on the left cannot be continued; pad on the right")
            shortest = int(mask.sum(dim=1).min())
        if self.prompt is not None:
            found = self.prompt
        else:
            first = int(places(self.task, batch).judged.int().argmax(dim=1).min()) + 1
            found = first if first > 1 else ids.shape[1] // 2
        found = min(found, shortest)
        if not 1 <= found < ids.shape[1]:
            raise TaskError(f"a prompt of {found} tokens leaves nothing to write in rows of {ids.shape[1]}")
        return found

    def write(self, model: nn.Module, batch: Any) -> tuple[Any, Places]:
        """Return the batch with its rows continued by `model`, and the places that predict what was written."""
        ids = ids_of(self.task, batch)
        start = torch.full((len(ids),), self.start(batch), device=ids.device)
        return written(self.task, batch, *self._continued(model, batch, ids, start))

    def corrected(
        self, model: nn.Module, batch: Any, seen: Places, student: Tensor, teacher: Tensor
    ) -> tuple[Any, Places, Tensor]:
        """Return a written batch with its worst word replaced by the teacher's and the rest written anew.

        The worst word of a row is, among those that differ from the teacher's most probable one, where KL(teacher ||
        student) is largest; a row without such a word stays as it is.

        Args:
            batch, seen: what `write` returned.
            student, teacher: logits [B, T, V] for it.

        Returns:
            The batch, the places that count (as before), and the corrected place of each row, -1 where none.
        """
        ids = ids_of(self.task, batch)
        wrong = worst(seen, student, teacher)
        rows = torch.nonzero(wrong >= 0)[:, 0]
        fixed = ids.clone()
        fixed[rows, wrong[rows] + 1] = teacher[rows, wrong[rows]].argmax(dim=1).to(ids.dtype)
        restart = torch.where(wrong >= 0, wrong + 2, ids.shape[1])
        first = seen.judged.int().argmax(dim=1) + 1
        ended = _valid(fixed, first, self._end(model))
        fixed, valid = self._rewritten(model, batch, fixed, restart, ended)
        made, found = written(self.task, batch, fixed, first, valid)
        return made, found, torch.where(wrong >= 0, wrong + 1, -1)

    def _rewritten(
        self, model: nn.Module, batch: Any, ids: Tensor, start: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        if int(start.min()) >= ids.shape[1]:
            return ids, valid
        made, _, _ = self._continued(model, batch, ids, start)
        first = torch.where(start < ids.shape[1], start - 1, 0)
        again = _valid(made, first, self._end(model))
        return made, torch.where((start < ids.shape[1])[:, None], again, valid)

    def _end(self, model: Any) -> int | None:
        end = getattr(getattr(model, "config", None), "eos_token_id", None)
        return end[0] if isinstance(end, list) else end

    @torch.no_grad()
    def _continued(self, model: nn.Module, batch: Any, ids: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (tokens, start, valid): each row from its own start on drawn from `model`."""
        made = ids.clone()
        first, length = int(start.min()), ids.shape[1]
        with evaluating(model), torch.autocast(ids.device.type, enabled=False):
            step = _Cached(model) if _keeps_states(model) else _Whole(model, self.task, batch)
            for place in range(first, length):
                drawn = self._draw(step.after(made, place))
                made[:, place] = torch.where(place >= start, drawn.to(ids.dtype), made[:, place])
        return made, start, _valid(made, start, self._end(model))

    def _draw(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(dim=1)
        chances = (logits.float() / self.temperature).softmax(dim=1).cpu()
        return torch.multinomial(chances, 1, generator=self.generator)[:, 0].to(logits.device)


def worst(seen: Places, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the place of each row whose following word is most wrong, int64 [B], -1 where none is."""
    shape = seen.judged.shape
    with torch.no_grad():
        gaps = divergence(student.flatten(0, 1), teacher.flatten(0, 1), "forward").view(shape)
    differs = seen.judged & (teacher.argmax(dim=2) != seen.following)
    found = gaps.masked_fill(~differs, -torch.inf).argmax(dim=1)
    return torch.where(differs.any(dim=1), found, -1)


def _valid(ids: Tensor, start: Tensor, end: int | None) -> Tensor:
    """Return which tokens stand before a row's end: up to and with the first end token from `start` on."""
    if end is None:
        return torch.ones_like(ids, dtype=torch.bool)
    ends = (ids == end) & (torch.arange(ids.shape[1], device=ids.device) >= start[:, None])
    return ends.int().cumsum(dim=1) - ends.int() == 0


def _keeps_states(model: Any) -> bool:
    """Tell whether a model gives back keys and values, so that a token costs one token's work."""
    return hasattr(model, "prepare_inputs_for_generation") and hasattr(model, "config")


class _Cached:
    """A Hugging Face model, asked for one more token at a time."""

    def __init__(self, model: Any) -> None:
        self.model, self.past, self.done = model, None, 0
        known = inspect.signature(model.forward).parameters
        self.name = "cache" if "cache" in known else "past_key_values"  # the library renames it

    def after(self, ids: Tensor, place: int) -> Tensor:
        """Return the logits of the token at `place`, [B, V]."""
        found = self.model(input_ids=ids[:, self.done : place], use_cache=True, **{self.name: self.past})
        self.past, self.done = found.past_key_values, place
        logits: Tensor = found.logits[:, -1]
        return logits


class _Whole:
    """Any other model, asked with all tokens each time."""

    def __init__(self, model: nn.Module, task: Task, batch: Any) -> None:
        self.model, self.task, self.batch = model, task, batch

    def after(self, ids: Tensor, place: int) -> Tensor:
        """Return the logits of the token at `place`, [B, V]."""
        return call_model(self.model, ids[:, :place])[:, -1]


class Memory:
    """The last texts that a student wrote, to learn from again (arXiv 2402.03898).

    Args:
        size: batches that are kept; 0: none.
        fresh: chance that a new one is written although old ones are there.
    """

    def __init__(self, size: int, fresh: float, generator: torch.Generator) -> None:
        self.size, self.fresh, self.generator = size, fresh, generator
        self.kept: list[tuple[Any, Places]] = []

    def recall(self) -> tuple[Any, Places] | None:
        """Return an old batch, or None where a new one shall be written."""
        if not self.kept or float(torch.rand((), generator=self.generator)) < self.fresh:
            return None
        return self.kept[int(torch.randint(len(self.kept), (), generator=self.generator))]

    def keep(self, batch: Any, seen: Places) -> None:
        """Take a new batch in place of the oldest."""
        self.kept = [*self.kept, (batch, seen)][-self.size :] if self.size else []
