"""Put a reduction into a model's tower and take it out again: blocks get a forward of their own, nothing is copied.

patch = reduce_tokens(model, Merge(removed=(8,) * 12))
model(images)
patch.state                 # sizes, groups and counts of the last forward
patch.remove()              # the model is exactly what it was

tokens -> block 0 -> ... -> block L-1 -> (restore the full grid, if something after it reads every patch)
          x + attention(norm1(x)), with log(size) on the keys
          reduce: signals -> plan -> one apply to features, sizes, groups
          x + mlp(norm2(x))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.vit import Tower, TowerBlock, find_tower
from lessen.errors import InputError
from lessen.tokens.reducers import Nothing, Reducer, Signals, check_fits, sizes_matter
from lessen.tokens.state import TokenState, require_nothing_dropped

MARK = "_lessen_token_patch"


def reduce_block(
    parts: TowerBlock, x: Tensor, layer: int, reducer: Reducer, state: TokenState
) -> tuple[Tensor, TokenState]:
    """Run one block on tokens [B,N,C] with the reduction between its two residuals."""
    bias = state.bias() if reducer.proportional else None
    x = x + parts.residual(1, parts.attend(parts.norm1(x), bias))
    plan = reducer.plan(Signals(parts, x, bias, layer), state)
    parts.forget()
    if plan is not None:
        x, state = state.apply(plan, x, sizes=sizes_matter(reducer))
    return x + parts.residual(2, parts.mlp(parts.norm2(x))), state


@dataclass
class Patch:
    """A reduction that is in place in a model."""

    model: nn.Module
    tower: Tower
    reducer: Reducer
    restore: bool
    """Whether the last block gives back one token for each input token."""
    start: TokenState
    state: TokenState = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.start

    def remove(self) -> None:
        """Undo the patch: the model is what it was before."""
        for block in self.tower.blocks:
            forward = block.__dict__.pop("forward", None)
            if isinstance(forward, BlockForward):
                forward.parts.detach()
        self.model.__dict__.pop(MARK, None)


class BlockForward:
    """What a patched block runs instead of its own forward; an object, so that a copied model stays patched."""

    def __init__(self, patch: Patch, parts: TowerBlock, layer: int) -> None:
        self.patch, self.parts, self.layer = patch, parts, layer

    def __call__(self, x: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Run the block. Raises InputError for padded batches."""
        if attention_mask is not None:
            raise InputError(
                "the batch is padded (an attention mask was given); images of different sizes cannot be reduced "
                "together, batch images of one size"
            )
        patch = self.patch
        # the first block starts a new forward: no hook is needed, and calls that failed halfway leave nothing behind
        before = patch.start if self.layer == 0 else patch.state
        x, patch.state = reduce_block(self.parts, x, self.layer, patch.reducer, before)
        last = self.layer == len(patch.tower.blocks) - 1
        return patch.state.unmerge(x) if last and patch.restore else x


def reduce_tokens(
    model: nn.Module, reducer: Reducer, *, restore: bool | None = None, tokens: int | None = None,
    example: Any = None,
) -> Patch:  # fmt: skip
    """Put `reducer` into the only tower of `model`, in place.

    Args:
        restore: give the consumer of the tower one token for each input token (unmerge). By default this is done
            exactly where something reads all patches: mean pooling, attention pooling (SigLIP), DINOv2's classifier.
        tokens: input tokens of the tower, to check the schedule before the first run.
        example: inputs of the model (a tensor, or keyword arguments); when given, the patch with nothing reduced is
            run first and must equal the unpatched model bit for bit.

    Raises:
        NothingMatchedError: no tower of a known family.
        InputError: already patched, a schedule that does not fit, a score that needs a class token, positions that
            would be lost, dropped tokens that cannot be restored, or a block that does not run as its family says.
    """
    if getattr(model, MARK, None) is not None or any("forward" in m.__dict__ for m in model.modules()):
        raise InputError("the model is already patched; call remove() on its patch first")
    tower = find_tower(model)
    check_fits(reducer, len(tower.blocks), tower.protected, tower.family.has_class, tokens, f"the tower {tower.path!r}")
    if restore is None:
        restore = tower.pools_patches and not reducer.drops
    elif restore:
        require_nothing_dropped(reducer.drops, reducer.kind)
    if example is not None:
        _check_identity(model, tower, example)
    return _install(model, tower, reducer, restore)


def _install(model: nn.Module, tower: Tower, reducer: Reducer, restore: bool) -> Patch:
    start = TokenState(protected=tower.protected, has_class=tower.family.has_class)
    patch = Patch(model, tower, reducer, restore, start)
    for layer, block in enumerate(tower.blocks):
        parts = TowerBlock(block, tower.family)
        parts.attach()
        block.__dict__["forward"] = BlockForward(patch, parts, layer)
    model.__dict__[MARK] = patch
    return patch


def _check_identity(model: nn.Module, tower: Tower, example: Any) -> None:
    training = model.training
    model.eval()
    with torch.no_grad():
        before = _first(_run(model, example))
        patch = _install(model, tower, Nothing(blocks=len(tower.blocks)), False)
        try:
            after = _first(_run(model, example))
        finally:
            patch.remove()
            model.train(training)
    if not torch.equal(before, after):
        worst = float((before - after).abs().max())
        raise InputError(
            f"the blocks of {tower.path!r} do more than their family {tower.family.name!r} says: with nothing reduced "
            f"the output differs by {worst:.3g}; this model cannot be patched"
        )


def _run(model: nn.Module, example: Any) -> Any:
    return model(**example) if isinstance(example, dict) else model(example)


def _first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    return torch.as_tensor(output[0])
