"""Layer drop: whole blocks of a Transformer go, by what the model loses without them or by how little they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import NothingMatchedError
from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.pruned import CLAIMS, costs_of, cut, dense_of
from lessen.methods.weights._shared.questions import batches_of, mean_loss
from lessen.pruning.choice import Choice
from lessen.pruning.layout import Layer, Layout, first_tensor, read_layout
from lessen.pruning.scan import weakest_blocks
from lessen.pruning.slicing import NAME
from lessen.stored.pruned_shape import PrunedShape
from lessen.task import Task


class LayerDrop(ModuleMethod):
    """Drop whole blocks until a share of them is left.

    loss        one by one the block without which the loss on train batches is lowest (SLEB, arXiv 2402.09025)
    similarity  the blocks whose output is most like their input, by cosine (ShortGPT, arXiv 2403.03853)
    random      a control

    Differences: SLEB's and ShortGPT's rules on any Transformer, both towers of a dual encoder, and judged by the
    task's own loss. A second application finds the blocks that it wanted gone already; with `only` or `skip` the share
    is one of the blocks that they name, as they stand.
    """

    card = Card(
        name="layer-drop",
        family="weights",
        summary="Drop the blocks of a Transformer that are missed least.",
        acts_on=("blocks",),
        source="arXiv 2402.09025, 2403.03853",
        needs=frozenset({"calibration"}),
        claims=CLAIMS,
    )
    layers: float = Field(0.75, gt=0, lt=1, description="share of the blocks that stays")
    rule: Literal["loss", "similarity", "random"] = Field("loss", description="how blocks are ranked")
    calibration_batches: int = Field(8, ge=1, le=100_000, description="train batches that blocks are ranked on")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Choose, prove that the rest computes what it did, and drop.

        Raises:
            NothingMatchedError: there are no blocks, or no more than shall stay.
            InputError: a block would take the place of one of another kind.
        """
        model = linearised(model)
        model = linearised(model)
        try:
            layout = read_layout(model)
        except NothingMatchedError as error:
            raise self.nothing_matched(model, str(error)) from error
        costs = costs_of(layout, task)
        may_go = self._may_go(layout)
        depth, least = len(may_go), 1
        if not (self.only or self.skip):
            depth = sum(_first_depth(model, path, len(stack.blocks)) for path, stack in layout.stacks.items())
            least = len(layout.stacks)
        drop = len(may_go) - max(least, round(self.layers * depth))
        if drop <= 0:
            raise self.nothing_matched(model, f"{len(may_go)} blocks are no more than shall stay")
        choice = Choice(layers=self._stays(layout, may_go, drop, task, context))
        context.findings["kept"] = choice.counts(layout)
        return cut(layout, choice, dense_of(model, costs), False, task)

    def _may_go(self, layout: Layout) -> list[Layer]:
        """Return the blocks that `only` and `skip` name. Raises ConfigError for a pattern without a match."""
        self.scope.check(path for path, _ in layout.model.named_modules() if path)
        return [layer for layer in layout.layers if self.scope.reason([layer.path]) is None]

    def _stays(
        self, layout: Layout, may_go: Sequence[Layer], drop: int, task: Task, context: Context
    ) -> dict[str, Tensor]:
        if self.rule == "loss":
            question = mean_loss(layout.model, task, self.calibration_batches)
            return weakest_blocks(layout, question, Choice(), drop, context.log, may_go)
        if self.rule == "random":
            values = torch.rand(len(layout.layers), generator=context.generator)
        else:
            values = changes(layout, task, self.calibration_batches)
        stays = {path: torch.ones(len(stack.blocks), dtype=torch.bool) for path, stack in layout.stacks.items()}
        for number in torch.argsort(values, stable=True).tolist():
            layer = layout.layers[number]
            if drop and layer in may_go and int(stays[layer.stack].sum()) > 1:
                stays[layer.stack][layer.block.index] = False
                drop -= 1
        return stays


@torch.no_grad()
def changes(layout: Layout, task: Task, batches: int) -> Tensor:
    """Return one less the mean cosine of what each block is given and what it answers, float64 [blocks]."""
    sums = torch.zeros(len(layout.layers), 2, dtype=torch.float64)

    def watch(number: int) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            before, after = first_tensor(arguments or keywords.get("hidden_states")), first_tensor(output)
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[number] += torch.tensor([float(cosine.sum()), cosine.numel()], dtype=torch.float64)

        return hook

    handles = [
        layer.block.module.register_forward_hook(watch(number), with_kwargs=True)
        for number, layer in enumerate(layout.layers)
    ]
    try:
        layout.model.eval()
        for batch in batches_of(task, batches):
            task.forward(layout.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return 1 - sums[:, 0] / sums[:, 1].clamp(min=1)


def _first_depth(model: nn.Module, path: str, depth: int) -> int:
    """Return how many blocks a stack had before any step dropped some, as noted."""
    noted = model._modules.get(NAME)
    return noted.depths.get(path, depth) if isinstance(noted, PrunedShape) else depth
