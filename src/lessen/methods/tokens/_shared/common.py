"""What token methods share: finding the tower, counting it, fitting a schedule to a budget, patching, fine-tuning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.architectures.vit import Tower, find_tower
from lessen.errors import BudgetError, NothingMatchedError
from lessen.method import Context, Method
from lessen.methods import retrain
from lessen.methods.tokens._shared.attentive_mask import AttentiveMasking
from lessen.task import Task
from lessen.tokens.macs import TowerShape, full_macs, tower_macs
from lessen.tokens.reducers import Reducer
from lessen.tokens.stored import TokenReduction, patch_of

CLAIMS: frozenset[Literal["bytes", "macs", "latency"]] = frozenset({"macs", "latency"})
BLOCKS = ("blocks",)


@dataclass(frozen=True)
class Survey:
    """The tower to reduce, its shape, and what the method was given."""

    model: nn.Module
    tower: Tower
    shape: TowerShape
    task: Task
    context: Context


class TokenMethod(Method):
    """A token reduction put into the model's tower. Weights stay as they are: no byte is saved."""

    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs of training with the reduction in place")
    fine_tune_share: float = Field(
        1.0, gt=0, le=1, description="share of the patches seen in fine-tuning, by attentive masking; 1 is all"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Patch the tower and fine-tune if asked.

        Raises:
            NothingMatchedError: the model has no tower of a known family.
            InputError: the model is already patched, or the schedule does not fit its tower.
            BudgetError: no schedule reaches the multiply-adds asked for.
        """
        survey = self._survey(model, task, context)
        reducer = self.reducer(survey)
        example = task.inputs(task.example_batch())
        TokenReduction(reducer).attach(
            model, tokens=survey.shape.tokens, example=example if isinstance(example, (torch.Tensor, dict)) else None
        )
        record(survey, reducer)
        if self.fine_tune_epochs:
            self._fine_tune(model, task, context)
        return model

    def _survey(self, model: nn.Module, task: Task, context: Context) -> Survey:
        """Return the survey, or the error that names this method and what it looked for."""
        if patch_of(model) is not None:
            raise self.nothing_matched(model, "its tower is already patched by an earlier step")
        try:
            return survey_tower(model, task, context)
        except NothingMatchedError as error:
            raise self.nothing_matched(model, str(error)) from error

    def _fine_tune(self, model: nn.Module, task: Task, context: Context) -> None:
        if self.fine_tune_share == 1.0:
            retrain.train(model, task, context, epochs=self.fine_tune_epochs)
            return
        masking = AttentiveMasking(model, self.fine_tune_share)
        try:
            retrain.train(model, task, context, epochs=self.fine_tune_epochs, hooks=(masking,))
        finally:
            masking.remove()
        context.findings["training_tokens"] = masking.kept

    @abstractmethod
    def reducer(self, survey: Survey) -> Reducer:
        """Return the reducer to put in."""


def survey_tower(model: nn.Module, task: Task, context: Context) -> Survey:
    """Find the tower and count its tokens and multiply-adds on the task's example batch."""
    tower = find_tower(model)
    tokens: list[int] = []

    def count(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens.append(int(inputs[0].shape[1]))

    batch = task.example_batch()
    handle = tower.blocks[0].register_forward_pre_hook(count)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)
    model.eval()
    try:
        with torch.no_grad(), counter:
            task.forward(model, batch)
    finally:
        handle.remove()
    bare = TowerShape(tokens[0], tower.width, len(tower.blocks), tower.hidden)
    rest = counter.get_total_flops() // 2 // len(task.target(batch)) - full_macs(bare)
    return Survey(model, tower, replace(bare, patch_macs=max(0, rest)), task, context)


def record(survey: Survey, reducer: Reducer) -> None:
    """Write into the findings what the reduction does to the tokens and the multiply-adds."""
    counts = reducer.counts(survey.shape.tokens, survey.tower.protected)
    share = tower_macs(survey.shape, counts) / full_macs(survey.shape)
    survey.context.findings.update(
        {"tokens_in": survey.shape.tokens, "tokens_after_block": counts, "macs_share": share, **reducer.config()}
    )


def share_of(survey: Survey, reducer: Reducer) -> float:
    """Return the share of the full multiply-adds that a reducer needs."""
    counts = reducer.counts(survey.shape.tokens, survey.tower.protected)
    return tower_macs(survey.shape, counts) / full_macs(survey.shape)


def gentlest(survey: Survey, candidates: list[Any], make: Callable[[Any], Reducer], share: float, name: str) -> Reducer:
    """Return the first reducer, from gentle to harsh, that needs at most `share` of the multiply-adds.

    Raises:
        BudgetError: even the harshest needs more; the message names what it reaches.
    """
    low, high = 0, len(candidates) - 1
    if share_of(survey, make(candidates[high])) > share:
        reached = share_of(survey, make(candidates[high]))
        raise BudgetError(f"{name} cannot reach {share:.3f} of the multiply-adds; the nearest it can is {reached:.3f}")
    while low < high:
        middle = (low + high) // 2
        if share_of(survey, make(candidates[middle])) <= share:
            high = middle
        else:
            low = middle + 1
    return make(candidates[low])


def even_removals(total: int, depth: int) -> tuple[int, ...]:
    """Return `total` removals over `depth` blocks, as even as integers allow, the larger ones late."""
    return tuple(total * (block + 1) // depth - total * block // depth for block in range(depth))


def evenly_placed(depth: int, places: int = 3) -> tuple[int, ...]:
    """Return the blocks that start each further quarter of the depth: 3, 6, 9 of 12, as EViT uses."""
    return tuple(sorted({min(depth - 1, max(1, depth * k // (places + 1))) for k in range(1, places + 1)}))
