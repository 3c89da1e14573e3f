"""What methods share that take heads and feed-forward units out of a Transformer: the budget, the cut, the proof."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lessen.errors import BudgetError, ConfigError, InputError, NothingMatchedError
from lessen.method import Card, Context, Forecast
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Scope, state_bytes
from lessen.methods.weights._shared.conv1d import linearised
from lessen.pruning.budget import NAMES, Values, by_shares, evenly, fit_budget, fit_evenly
from lessen.pruning.choice import Choice
from lessen.pruning.costs import Costs, Measure, read_costs
from lessen.pruning.depth import configured
from lessen.pruning.layout import Layout, read_layout, within
from lessen.pruning.masks import masked
from lessen.pruning.scores import width_by_magnitude
from lessen.pruning.slicing import NAME, carry_out, hidden_names, says_head_width
from lessen.stored.pruned_shape import PrunedShape
from lessen.task import Task
from lessen.usercode import boundary

CLAIMS = frozenset({"bytes", "macs", "latency"})
TIED = frozenset({"bert", "roberta", "clip_text_model", "clip_vision_model", "distilbert", "mpnet"})
"""Configurations in which heads times their width is the width of the stream."""


class Pruned(ModuleMethod):
    """Takes the least valued heads and units out until a share of the cost is left.

    `only` and `skip` name places: heads go where all of their query, key, value and output layers are named, units
    where all layers of the feed-forward part are. `share` is then of what the named heads and units cost.
    """

    card: ClassVar[Card]
    by_cost: ClassVar[bool] = True
    """Whether values are worth more where they cost less."""
    share: float = Field(0.75, gt=0, lt=1, description="what is left of the cost, unless heads or units say it")
    of: Literal["macs", "parameters"] = Field(
        "macs", description="the cost: multiply-adds of one example, or parameters of the whole model"
    )
    heads: float | None = Field(None, gt=0, le=1, description="share of the heads of every block that stays")
    units: float | None = Field(None, gt=0, le=1, description="share of the units of every block that stays")
    width: float | None = Field(None, gt=0, le=1, description="share of the residual width that stays, the largest")
    multiple: int = Field(16, ge=1, le=1024, description="kept units and width are multiples of it")
    uniform: bool = Field(
        False, description="equal counts in all blocks, said in the configuration: any reader opens such a folder"
    )

    @model_validator(mode="after")
    def _width_is_everywhere(self) -> Self:
        if self.width is not None and (self.only or self.skip):
            raise ValueError("width is read and written by every block; leave out only and skip")
        return self

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Choose, prove that the slices compute what the masks do, and slice.

        Raises:
            NothingMatchedError: there are no blocks, or the model is no larger than asked for.
            BudgetError: the share cannot be reached, or would leave a block without heads.
            InputError: hooks, parametrisations or shared weights are in the way.
        """
        model = linearised(model)
        layout = self.layout(model)
        costs = costs_of(layout, task)
        dense = dense_of(model, costs, self.scope)
        start = self._start(layout)
        limit = limit_of(self.share, self.of, costs, dense, self.scope)
        asked = self.heads is not None or self.units is not None
        if not asked and costs.total(self.of, start) <= limit and self.width is None:
            raise self.nothing_matched(model, f"{self.share:g} of the {self.of} or less is left already")
        if self.uniform:
            free = self.heads is None and self.units is None
            check_expressible(layout, self.heads, free or (self.units or 1) < 1)
        try:
            choice = self.choose(layout, costs, limit, start, task, context)
        except BudgetError as error:
            raise self._of_places(error, costs, dense) from error
        context.findings["kept"] = choice.counts(layout)
        context.findings["share"] = {
            name: round(costs.total(name, choice) / dense[name], 5) for name in ("macs", "parameters")
        }
        return cut(layout, choice, dense, self.uniform, task)

    def choose(
        self, layout: Layout, costs: Costs, limit: float, start: Choice, task: Task, context: Context
    ) -> Choice:  # fmt: skip
        """Return what stays."""
        return self.fitted(costs, self.values(layout, costs, task, context), limit, start)

    def fitted(self, costs: Costs, values: Values, limit: float, start: Choice) -> Choice:
        """Return what stays of valued parts. Raises BudgetError."""
        if self.heads is not None or self.units is not None:
            return by_shares(values, self.heads, self.units, self.multiple, start)
        if costs.total(self.of, start) <= limit:
            return start
        if self.uniform:
            if tied_to_width(costs.layout):
                values = Values({}, values.units)
            return fit_evenly(costs, values, limit, self.of, self.multiple, start)
        return fit_budget(costs, values, limit, self.of, self.multiple, by_cost=self.by_cost, start=start)

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:  # noqa: ARG002
        """Return the bytes of what is left where `share` is one of parameters. Raises as `apply`."""
        if self.heads is not None or self.units is not None or self.of == "macs":
            return Forecast(None, "which parts go decides how many bytes they hold")
        costs = costs_of(self.layout(linearised(copy.deepcopy(model))), task)
        whole = costs.parameters()
        limit = limit_of(self.share, "parameters", costs, dense_of(model, costs, self.scope), self.scope)
        left = min(1.0, limit / whole)
        return Forecast(round(left * state_bytes(model)), "retrain afterwards", self._smallest(costs, whole))

    def _of_places(self, error: BudgetError, costs: Costs, dense: dict[str, int]) -> BudgetError:
        """Return the error with shares of the named places in place of those of the whole model."""
        if not named(self.scope) or self.heads is not None or self.units is not None or error.nearest is None:
            return error
        outside = costs.total(self.of) - costs.removable(self.of)
        least = (error.nearest * costs.total(self.of) - outside) / dense[_place(self.of, self.scope)]
        return BudgetError(
            f"{self.share:g} of what `only` and `skip` name cannot be reached: with one head (or group of heads) and "
            f"{self.multiple} units in every block {least:.3g} of it is left; ask for more",
            least,
        )

    def _smallest(self, costs: Costs, whole: int) -> float:
        """Return the share that is left with one group and `multiple` units in every block."""
        alike = Values(
            {one.path: torch.ones(one.groups) for one in costs.layout.layers if one.groups},
            {one.path: torch.ones(one.hidden) for one in costs.layout.layers if one.hidden},
        )
        return costs.parameters(evenly(alike, 1, self.multiple, Choice())) / whole

    @abstractmethod
    def values(self, layout: Layout, costs: Costs, task: Task, context: Context) -> Values:
        """Return what each part is worth, higher is better."""

    def layout(self, model: nn.Module) -> Layout:
        """Return the prunable parts. Raises NothingMatchedError, InputError; ConfigError for an unknown place."""
        try:
            layout = read_layout(model)
        except NothingMatchedError as error:
            raise self.nothing_matched(model, str(error)) from error
        if not named(self.scope):
            return layout
        self.scope.check(path for path, _ in model.named_modules() if path)
        layout = within(layout, lambda path: self.scope.reason([path]) is None)
        if not any(layer.groups or layer.hidden for layer in layout.layers):
            raise self.nothing_matched(model, "`only` and `skip` leave no heads or units whole")
        return layout

    def _start(self, layout: Layout) -> Choice:
        """Return the choice of the width."""
        if self.width is None:
            return Choice()
        path, stack = next(iter(layout.stacks.items()))
        step = self.multiple if stack.width > self.multiple else 1
        count = max(step, int(self.width * stack.width / step + 0.5) * step)
        order = torch.argsort(-self.width_values(layout, path), stable=True)
        kept = torch.zeros(stack.width, dtype=torch.bool)
        kept[order[:count]] = True
        return Choice(width={path: kept})

    def width_values(self, layout: Layout, path: str) -> Tensor:
        """Return what each dimension of the stream is worth, [width]."""
        return width_by_magnitude(layout, path)


def costs_of(layout: Layout, task: Task) -> Costs:
    """Return the arithmetic of a model, its tokens read from the task's example batch."""
    batch = task.example_batch()
    return read_costs(layout, lambda: task.forward(layout.model, batch), max(1, task.units_in(batch)))


def dense_of(model: nn.Module, costs: Costs, scope: Scope | None = None) -> dict[str, int]:
    """Return what the model cost before any pruning: as an earlier step noted it, or as it is.

    With a scope also what its places cost before the first step that named the same ones.
    """
    noted = model._modules.get(NAME)
    found = {"parameters": costs.parameters(), "macs": costs.macs()}
    if scope is not None and named(scope):
        found |= {_place(measure, scope): round(costs.removable(measure)) for measure in NAMES}
    return found | noted.dense if isinstance(noted, PrunedShape) else found


def limit_of(share: float, of: Measure, costs: Costs, dense: dict[str, int], scope: Scope) -> float:
    """Return what a whole model may cost of which `share` is left, or of whose places within a scope it is."""
    if not named(scope):
        return share * dense[of]
    return costs.total(of) - costs.removable(of) + share * dense[_place(of, scope)]


def named(scope: Scope) -> bool:
    """Tell whether a scope names places at all."""
    return bool(scope.only or scope.skip)


def _place(measure: str, scope: Scope) -> str:
    return f"{measure} of {' '.join(scope.only) or '*'} without {' '.join(scope.skip) or 'any'}"


def tied_to_width(layout: Layout) -> bool:
    """Tell whether the configuration says the width of a head only as width / heads, so that heads must stay."""
    for stack in layout.stacks.values():
        config = configured(layout.model, stack.owner.path)[1]
        if getattr(config, "model_type", None) in TIED or (config is not None and not says_head_width(config)):
            return True
    return False


def check_expressible(layout: Layout, heads: float | None, fewer_units: bool) -> None:
    """Refuse equal counts where no configuration would say them. Raises ConfigError."""
    for stack in layout.stacks.values():
        config = configured(layout.model, stack.owner.path)[1]
        if config is None:
            raise ConfigError(
                f"{type(layout.model).__name__} has no configuration that could say other widths; set uniform: false"
            )
        if heads is not None and heads < 1 and tied_to_width(layout):
            raise ConfigError(
                f"the configuration of {type(layout.model).__name__} says the width of a head as width / heads, so "
                "that fewer heads cannot be said; prune units only, or set uniform: false"
            )
        hidden = layout.of(stack.path)[0].hidden
        if hidden and fewer_units and not hidden_names(config, stack, hidden):
            raise ConfigError(
                f"the configuration of {type(layout.model).__name__} does not say how wide feed-forward layers are, so "
                "that fewer units cannot be said; set uniform: false"
            )


def cut(layout: Layout, choice: Choice, dense: dict[str, int], uniform: bool, task: Task) -> nn.Module:
    """Carry a choice out and prove on the task's example batch that the result computes what masks would.

    Raises:
        InputError: it does not: the host reads widths in a way that is not known here.
    """
    model, batch = layout.model, task.example_batch()
    model.eval()
    with torch.no_grad(), masked(layout, choice):
        expected = task.forward(model, batch)
    if choice.width and expected.shape[-1] == layout.stacks[next(iter(choice.width))].width:
        expected = expected[..., next(iter(choice.width.values()))]
    model = carry_out(layout, choice, dense, uniform)
    with boundary(f"{type(model).__name__} cannot run with fewer heads or units"), torch.no_grad():
        found = task.forward(model, batch)
    narrower = expected.shape != found.shape and bool(choice.width)
    scale = float(expected.abs().max()) + 1e-12
    if not narrower and float((found - expected).abs().max()) > 1e-3 * scale:
        raise InputError(
            f"{type(model).__name__} does not compute without these parts what it computes with zeros in their place; "
            "it reads its widths in a way that is not known: it cannot be pruned"
        )
    return model
