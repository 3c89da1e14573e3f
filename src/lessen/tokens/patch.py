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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.tower_block import TowerBlock
from lessen.architectures.vit import Tower, find_tower
from lessen.errors import InputError
from lessen.tokens.arguments import MASKS, POSITIONS, Handed, read_arguments, real_tokens
from lessen.tokens.blocks import check_block, equal, reduce_block
from lessen.tokens.calls import Calls
from lessen.tokens.reducers import Nothing, Reducer, check_fits
from lessen.tokens.state import NOBODY, TokenState, require_nothing_dropped
from lessen.tokens.traced import watch_masks

MARK = "_lessen_token_patch"
LEVELS = ("forward_intermediates", "get_intermediate_layers")
"""Methods of timm's towers that give what inner blocks gave, patch by patch."""
LEVELS_NEED = (
    "{} reads inner levels, which have fewer tokens than the grid; patch the model with restore=True, which gives "
    "every level one token for each input token (a reduction that drops tokens cannot)"
)


@dataclass
class Patch:
    """A reduction that is in place in a model."""

    model: nn.Module
    tower: Tower
    reducer: Reducer
    restore: bool
    """Whether every block gives one token for each input token, and takes the copies together again."""
    start: TokenState
    calls: Calls = field(default_factory=Calls, repr=False)
    strict: bool = True
    """Whether a picture with too few tokens for the schedule is refused; if not, blocks reduce as far as they can."""
    watches: list[Any] = field(default_factory=list, repr=False)
    """Handles of what watches whether a traced model was given a mask."""
    _fitting: set[int] = field(default_factory=set, repr=False)

    @property
    def state(self) -> TokenState:
        """Sizes, groups and counts at the end of this thread's last call."""
        return self.calls.finished() or self.start

    def begin(self, tokens: int, handed: Handed, block: nn.Module) -> TokenState:
        """Return the state of a new call on `tokens` tokens.

        Raises:
            InputError: the schedule does not fit them, or the mask hides something else than padding.
        """
        if self.strict and not torch.compiler.is_compiling() and tokens not in self._fitting:
            self.reducer.counts(tokens, self.tower.protected)
            self._fitting.add(tokens)
        state = self.start if handed.positions is None else replace(self.start, positions=handed.positions)
        if handed.mask is None:
            return state
        real = real_tokens(handed.mask, tokens, self.tower.protected, block)
        if not self.reducer.takes_padding:
            raise InputError(f"{self.reducer.kind} has no use for padded batches; batch pictures of one size")
        return replace(state, mask=handed.mask, size=torch.where(real, 1.0, NOBODY))

    def remove(self) -> None:
        """Undo the patch: the model is what it was before. A patch that is no longer in place undoes nothing."""
        for block in self.tower.blocks:
            forward = block.__dict__.get("forward")
            if isinstance(forward, BlockForward) and forward.patch is self:
                del block.__dict__["forward"]
                forward.parts.detach()
        for handle in self.watches:
            handle.remove()
        for name in LEVELS:
            refusal = self.tower.owner.__dict__.get(name)
            if isinstance(refusal, LevelsRefused) and refusal.patch is self:
                del self.tower.owner.__dict__[name]
        if self.model.__dict__.get(MARK) is self:
            del self.model.__dict__[MARK]


class LevelsRefused:
    """Stands for a method that gives inner levels, while they have fewer tokens than the grid."""

    def __init__(self, patch: Patch, name: str) -> None:
        self.patch, self.name = patch, name

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raise InputError."""
        raise InputError(LEVELS_NEED.format(self.name))


class BlockForward:
    """What a patched block runs instead of its own forward; an object, so that a copied model stays patched."""

    def __init__(self, patch: Patch, parts: TowerBlock, layer: int) -> None:
        self.patch, self.parts, self.layer = patch, parts, layer
        self.takes = MASKS | ({POSITIONS} if parts.family.rotary else set())

    def __call__(self, x: Tensor, *others: Any, **keywords: Any) -> Tensor:
        """Run the block. Raises InputError for whatever reduced tokens cannot follow."""
        block = self.parts.block
        handed = read_arguments(block, others, keywords, self.takes)
        if keywords.get("output_hidden_states") and not self.patch.restore:
            raise InputError(LEVELS_NEED.format("output_hidden_states"))
        if handed.mask is not None and torch.compiler.is_compiling():
            handed = replace(handed, mask=self.patch.calls.asked.mask(handed.mask, block))
        # transformers checkpoints inside the forward that this one stands for
        checkpointed = hasattr(type(block).forward, "__wrapped__") and getattr(block, "gradient_checkpointing", False)
        if checkpointed and block.training and torch.is_grad_enabled():
            return block._gradient_checkpointing_func(self._run, x, handed)  # type: ignore[no-any-return, operator]
        return self._run(x, handed)

    def _run(self, x: Tensor, handed: Handed) -> Tensor:
        patch = self.patch
        # the first block starts a new call: no hook is needed, and calls that failed halfway leave nothing behind
        if self.layer == 0:
            state = patch.begin(x.shape[1], handed, self.parts.block)
            state = replace(state, handed=handed) if handed.mask is not None or handed.positions is not None else state
        else:
            state = patch.calls.recall(x, self.layer)
            if not handed.same(state.handed or Handed()):
                raise InputError(f"block {self.layer} was handed another mask or other positions than the first block")
        last = self.layer == len(patch.tower.blocks) - 1
        if patch.restore:
            x = state.merge_again(x)
        x, state = reduce_block(self.parts, x, self.layer, patch.reducer, state)
        if patch.restore:
            state = state.settled()
            x = state.unmerge(x)
        patch.calls.remember(x, self.layer, state, last=last)
        return x


def reduce_tokens(
    model: nn.Module, reducer: Reducer, *, restore: bool | None = None, tokens: int | None = None, example: Any = None
) -> Patch:
    """Put `reducer` into the only tower of `model`, in place.

    Args:
        restore: give whoever reads the tower, after any block, one token for each input token (unmerge). This is done
            by default where something reads all patches: feature maps, mean pooling, attention pooling (SigLIP).
        tokens: input tokens of the tower, to check the schedule before the first run; without, the first run does.
        example: inputs of the model (a tensor, or keyword arguments). Each block is tried on random tokens in any
            case; with an example the whole model is run too, and must equal the unpatched model bit for bit.

    Raises:
        NothingMatchedError: no tower of a known family.
        InputError: already patched, a schedule that does not fit, a score that needs a class token, positions that
            would be lost, dropped tokens that cannot be restored, or a block that does not run as its family says.
    """
    _refuse_patched(model)
    tower = find_tower(model)
    _refuse_foreign(tower)
    check_fits(reducer, len(tower.blocks), tower.protected, tower.family.has_class, tokens, f"the tower {tower.path!r}")
    if restore is None:
        restore = tower.dense or (tower.pools_patches and not reducer.drops)
    if restore:
        require_nothing_dropped(reducer.drops, reducer.kind)
    for layer, block in enumerate(tower.blocks):
        parts = TowerBlock(block, tower.family)
        check_block(parts, tower.width, tower.protected, reducer.proportional, f"{tower.path}.{layer}")
    if example is not None:
        _check_identity(model, tower, example, restore)
    return _install(model, tower, reducer, restore)


def _refuse_patched(model: nn.Module) -> None:
    if model.__dict__.get(MARK) is not None or any(
        isinstance(module.__dict__.get("forward"), BlockForward) for module in model.modules()
    ):
        raise InputError("the model is already patched; call remove() on its patch first")


def _refuse_foreign(tower: Tower) -> None:
    for layer, block in enumerate(tower.blocks):
        own = block.__dict__.get("forward")
        if own is not None and getattr(own, "__func__", None) is not type(block).forward:
            raise InputError(
                f"{tower.path}.{layer}: something else has replaced the forward of this {type(block).__name__} "
                "(accelerate's hooks do, for offloading); remove it before tokens are reduced"
            )


def _install(model: nn.Module, tower: Tower, reducer: Reducer, restore: bool) -> Patch:
    start = TokenState(protected=tower.protected, has_class=tower.family.has_class)
    patch = Patch(model, tower, reducer, restore, start)
    for layer, block in enumerate(tower.blocks):
        parts = TowerBlock(block, tower.family)
        parts.attach()
        block.__dict__["forward"] = BlockForward(patch, parts, layer)
    for name in LEVELS:
        if not restore and callable(getattr(tower.owner, name, None)):
            tower.owner.__dict__[name] = LevelsRefused(patch, name)
    patch.watches = watch_masks(model, tower.owner, patch.calls.asked)
    model.__dict__[MARK] = patch
    return patch


def _check_identity(model: nn.Module, tower: Tower, example: Any, restore: bool) -> None:
    training = model.training
    model.eval()
    with torch.no_grad():
        before = _run(model, example)
        patch = _install(model, tower, Nothing(blocks=len(tower.blocks)), restore)
        try:
            after = _run(model, example)
        finally:
            patch.remove()
            model.train(training)
    if not before:
        raise InputError(f"{type(model).__name__} gives no tensor for the example, so that nothing can be compared")
    worst = max(map(_difference, before, after)) if len(before) == len(after) else float("inf")
    if worst > 0:
        raise InputError(
            f"the blocks of {tower.path!r} do more than their family {tower.family.name!r} says: with nothing reduced "
            f"the output differs by {worst:.3g}; this model cannot be patched"
        )


def _run(model: nn.Module, example: Any) -> list[Tensor]:
    """Return every tensor that a model gives for an example, such as logits or the maps of a backbone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # hosts that draw, such as MAE's masks, draw the same in both runs
        return _tensors(model(**example) if isinstance(example, dict) else model(example))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _difference(one: Tensor, other: Tensor) -> float:
    if equal(one, other):
        return 0.0
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
