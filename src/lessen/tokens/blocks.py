"""One block of a tower with a reduction between its two residuals, and the proof that its description is right.

x -> x + attention(norm1(x)), with log(size) on the keys
  -> reduce: signals -> plan -> one apply to features, sizes, groups
  -> x + mlp(norm2(x))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lessen.architectures.tower_block import Positions, TowerBlock
from lessen.errors import InputError
from lessen.tokens.arguments import POSITIONS, required_arguments
from lessen.tokens.reducers import Nothing, Reducer, Signals, sizes_matter
from lessen.tokens.state import TokenState

PATCHES = 11
"""Tokens beside the protected ones that a block is tried on."""
NOISE = 0.02
"""Share of an output that rounding may be, in bfloat16 too."""


def reduce_block(
    parts: TowerBlock, x: Tensor, layer: int, reducer: Reducer, state: TokenState
) -> tuple[Tensor, TokenState]:
    """Run one block on tokens [B,N,C] with the reduction between its two residuals."""
    bias = state.bias(reducer.proportional)
    added = state.mask if state.mask is not None and not state.rows else bias  # the host's own while it fits
    x = x + parts.residual(1, parts.attend(parts.norm1(x), added, state.positions))
    plan = reducer.plan(Signals(parts, x, bias, layer, state.positions, state.nobody), state)
    parts.forget()
    if plan is not None:
        x, state = state.apply(plan, x, sizes=sizes_matter(reducer))
    return parts.feed_forward(x), state


@torch.no_grad()
def check_block(parts: TowerBlock, width: int, protected: int, proportional: bool, where: str) -> None:
    """Run one block on random tokens: with nothing reduced it must be what it was, bit for bit.

    Its projections must be seen and, if `proportional`, its attention must honour log sizes: a key with bias log(n)
    weighs as much as n equal keys.

    Raises:
        InputError: it does not run by itself, or it does something else than its family says.
    """
    block = parts.block
    like = next((p for p in block.parameters() if p.is_floating_point()), None)
    if like is None or like.is_meta:
        return
    what = f"{where} ({type(block).__name__})"
    needed = required_arguments(block)
    if not all("mask" in name for name in needed):
        raise InputError(f"{what} is handed {', '.join(needed)} beside its tokens; such blocks cannot be reduced")
    x = torch.randn(2, protected + PATCHES, width, generator=torch.Generator().manual_seed(0)).to(like)
    positions = _some_positions(parts, like) if parts.family.rotary else None
    start = TokenState(protected, positions=positions)
    handed = {**dict.fromkeys(needed), **({POSITIONS: positions} if positions is not None else {})}
    with _in_eval(block), _watching(parts), _refusing(what):
        own = type(block).forward(block, x, **handed)
        ours, _ = reduce_block(parts, x, 0, Nothing(blocks=1), start)
        if not isinstance(own, Tensor):
            raise InputError(f"{what} gives a {type(own).__name__} and not tokens; such blocks cannot be reduced")
        if not equal(own, ours):
            raise InputError(
                f"{what} does more than its family {parts.family.name!r} says: with nothing reduced the output differs "
                f"by {float((own - ours).abs().max()):.3g}; this model cannot be patched"
            )
        plain = parts.attend(parts.norm1(x), None, positions)
        seen = parts.seen() and {parts.keys().shape[:3], parts.queries().shape[:3]}
        if seen != {(2, x.shape[1], parts.heads)}:
            raise InputError(f"{what} does not call its query and key projections as modules; its keys cannot be seen")
        if not _read_right(parts, parts.norm1(x), plain, positions):
            raise InputError(f"{what} does not attend as its family {parts.family.name!r} says; it cannot be patched")
        if proportional and not _weighed(parts, parts.norm1(x), plain, positions):
            raise InputError(f"{what} does not honour log sizes in its attention; pass proportional=False")


def equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal bit for bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _some_positions(parts: TowerBlock, like: Tensor) -> Positions:
    width = parts.project(like.new_zeros(1, 1, parts.width()))[0].shape[-1]
    angle = torch.rand(PATCHES, width // 2, generator=torch.Generator().manual_seed(1)).to(like).repeat(1, 2) * 6
    return angle.cos(), angle.sin()


def _read_right(parts: TowerBlock, x: Tensor, plain: Tensor, positions: Positions | None) -> bool:
    """Tell whether attention put together from its parts is what the block computes, where the patch relies on it."""
    if not parts.family.rotary and parts.family.bias_argument:
        return True
    wrong = (parts.attend_by_parts(x, None, positions) - plain).float().norm()
    return bool(wrong <= NOISE * plain.float().norm())


def _weighed(parts: TowerBlock, x: Tensor, plain: Tensor, positions: Positions | None) -> bool:
    """Tell whether keys with bias log(8) are nearer to eight equal keys than to one, if that matters."""
    some = PATCHES // 2
    size = torch.ones(x.shape[1], device=x.device)
    size[-some:] = 8
    biased = parts.attend(x, size.log()[None, None, None].expand(x.shape[0], 1, 1, -1), positions)
    again = None if positions is None else tuple(torch.cat([p, p[-some:].repeat(7, 1)]) for p in positions)
    wanted = parts.attend(torch.cat([x, x[:, -some:].repeat(1, 7, 1)], 1), None, again)[:, : x.shape[1]]  # type: ignore[arg-type]
    far, near = (wanted - plain).float().norm(), (wanted - biased).float().norm()
    return not bool((near > 0.5 * far) & (far > NOISE * wanted.float().norm()))


@contextlib.contextmanager
def _in_eval(block: nn.Module) -> Iterator[None]:
    training = [module for module in block.modules() if module.training]
    block.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever a host's code raises on tokens that it was not made for into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be reduced: {type(error).__name__}: {error}".splitlines()[0]) from error


@contextlib.contextmanager
def _watching(parts: TowerBlock) -> Iterator[None]:
    parts.attach()
    try:
        yield
    finally:
        parts.detach()
        parts.forget()
