"""Passes of packed Llama-type models as a compiled program, in place of the host's Python and torch's operators.

The host's modules stay what they are: this engine reads their panels (`stored.kernels`), norms and rotary tables. Rows
of all sequences of a pass lie one after the other, so weights are read once for all of them. Logits are those of the
module forward up to float rounding, and where that moves an activation to the next int8 code, up to that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.decoding.attention import windowed
from lessen.decoding.compiled import attention, rows
from lessen.decoding.compiled.cache import CodedCache, ContiguousCache
from lessen.decoding.compiled.codes import codes_for
from lessen.decoding.compiled.layout import PLACE, Codes, Heads
from lessen.decoding.compiled.program import Program, kernel
from lessen.decoding.kv_codes import Form
from lessen.decoding.straight import StraightEngine
from lessen.errors import InputError
from lessen.stored.kernels import machine
from lessen.stored.kernels.operands import Activations, Operand, product_kernel, rounding_kernel
from lessen.stored.kernels.products import HEAD
from lessen.stored.linears.scaled_input import ScaledInput

ROWS = 256
"""Rows of a pass; a longer one runs as several."""
_PLACES = 1024
"""Places of rotary tables that are made at once."""
_STEADY = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary frequencies that do not change with the length of a text."""
_OUT = HEAD.index("out")


class CompiledEngine(StraightEngine):
    """Runs passes of all sequences together; see `lessen.decoding.engine.Engine`.

    A row's logits do not depend on the rows beside it, to the last bit: drafts are verified exactly.

    Raises:
        InputError: kernels cannot be made here, a layer has none, or the blocks are not known to be one line.
    """

    def __init__(self, model: Any) -> None:
        if not any(hasattr(module, "operand") for module in model.modules()):
            raise InputError(f"{type(model).__name__} has no packed layers with kernels")
        if not machine.available():
            raise InputError("compiled passes need llvmlite (pip install 'lessen[kernels]') and torch on GNU OpenMP")
        super().__init__(model)
        _check_unwatched(self.view)
        kind = getattr(self._rotary, "rope_type", "default")
        if kind not in _STEADY:
            raise InputError(f"rotary frequencies of kind {kind} change with the length of a text")
        taken = [{name: _taken(getattr(line, name).module, name) for name in _NAMES} for line in self._lines]
        self.operands = [{name: operand for name, (operand, _) in parts.items()} for parts in taken]
        self._factors = [{name: factors for name, (_, factors) in parts.items()} for parts in taken]
        self.head, self._head_factors = _taken(self._head.module, "head")
        self.heads = self._same_heads()
        self.width = self._norm[0].numel()
        inner = self.operands[0]["gate"].outputs
        if self.width % 8 or self.heads.width % 16 or inner % 8:
            raise InputError(f"widths of {self.width}, {self.heads.width} and {inner} are no multiples of 8 and 16")
        self._tables = self._rotated(_PLACES)
        self._kept: tuple[Form, int] | None = None
        self._codes: Codes | None = None
        self._room(inner)
        self._write()

    def keep_codes(self, form: Form, exact: int) -> None:
        """Keep all but the first `exact` and the newest tokens of caches in codes, from the next new cache on.

        Raises:
            InputError: a form that compiled attention does not read.
        """
        self._kept, self._codes = (form, exact), codes_for(form, self.heads)
        self._write()

    def _same_heads(self) -> Heads:
        """Return the heads of all blocks, which must be the same. Raises InputError."""
        found = set()
        for line, operands in zip(self._lines, self.operands, strict=True):
            given = torch.linspace(-4, 4, 9)
            if line.rule is not windowed(None):
                raise InputError("a block attends within a window")
            if not torch.allclose(line.activation(given), nn.functional.silu(given), atol=1e-6):
                raise InputError("a feed-forward layer has another gate than SiLU")
            epsilon = None if line.head_norms is None else line.head_norms[0][1]
            keys = operands["key"].outputs // line.head_dim
            found.add(Heads(line.heads, keys, line.head_dim, line.scale, epsilon))
        if len(found) > 1:
            raise InputError("blocks have different heads")
        return found.pop()

    def _rotated(self, count: int) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines of the first `count` places, float32 [count, width]."""
        places = torch.arange(count)[None]
        cosine, sine = (part[0].float() for part in self._rotary(torch.zeros(1, 1, 1), places))
        half = self.heads.width // 2
        if cosine.shape[1] != self.heads.width:
            raise InputError(f"rotates {cosine.shape[1]} of {self.heads.width} columns of a head")
        return cosine.contiguous(), torch.cat((-sine[:, :half], sine[:, half:]), 1).contiguous()

    def _room(self, inner: int) -> None:
        """Make room for the rows of a pass."""
        attended = self.heads.queries * self.heads.width
        apart = attended + 2 * self.heads.keys * self.heads.width
        self.places = torch.zeros(ROWS, len(PLACE), dtype=torch.int64)
        self.stream, self.normed, self.chosen = (torch.empty(ROWS, self.width) for _ in range(3))
        self.projected, self.attended = torch.empty(ROWS, apart), torch.empty(ROWS, attended)
        self.gates, self.inner = torch.empty(ROWS, 2 * inner), torch.empty(ROWS, inner)
        self._scaled = torch.empty(ROWS * max(self.width, attended, inner))
        self._activations: dict[Any, Activations] = {}
        self._ready: Any = None
        """What the rows that the next product takes were made ready for, while steps are written."""

    # the programs

    def _write(self) -> None:
        """Write the programs of the blocks and of the head, each for one row and for several."""
        self._blocks = {several: self._block_program(several) for several in (False, True)}
        self._heads_of = {several: self._head_program(several) for several in (False, True)}

    def _block_program(self, several: bool) -> Program:
        program, inner = Program(), self.inner.shape[1]
        rotate = kernel(attention.rotate(self.heads))
        attend = kernel(attention.attend(self.heads, self._codes, several), True)
        apart = self.projected.shape[1]
        for number, (line, parts) in enumerate(zip(self._lines, self.operands, strict=True)):
            factors, at = self._factors[number], 0
            self._normed(program, self.stream, line.norms[0])
            for name in ("query", "key", "value"):
                rounded = self._rounded(program, parts[name], self.normed, factors[name])
                _product(program, parts[name], rounded, self.projected, several, at)
                at += parts[name].outputs
            norms = (0, 0) if line.head_norms is None else tuple(norm[0].data_ptr() for norm in line.head_norms)
            shared = [program.at, self.places.data_ptr(), self.projected.data_ptr(), apart, number]
            program.add(rotate, [*shared, *(table.data_ptr() for table in self._tables), *norms])
            program.add(attend, [*shared, self.attended.data_ptr()])
            rounded = self._rounded(program, parts["output"], self.attended, factors["output"])
            _product(program, parts["output"], rounded, self.stream, several, add=True)
            self._normed(program, self.stream, line.norms[1])
            for at, name in ((0, "gate"), (inner, "up")):
                rounded = self._rounded(program, parts[name], self.normed, factors[name])
                _product(program, parts[name], rounded, self.gates, several, at)
            program.add(kernel(rows.gate()), [program.at, self.gates.data_ptr(), inner, self.inner.data_ptr()])
            rounded = self._rounded(program, parts["down"], self.inner, factors["down"])
            _product(program, parts["down"], rounded, self.stream, several, add=True)
        return program

    def _head_program(self, several: bool) -> tuple[Program, Any]:
        program = Program()
        self._normed(program, self.chosen, self._norm)
        rounded = self._rounded(program, self.head, self.normed, self._head_factors)
        out = torch.empty(0, self.head.outputs)
        return program, _product(program, self.head, rounded, out, several)

    def _normed(self, program: Program, given: Tensor, norm: tuple[Tensor, float]) -> None:
        weight = norm[0].detach()
        arguments = [program.at, given.data_ptr(), given.shape[1], weight.data_ptr(), self.normed.data_ptr()]
        program.add(kernel(rows.norm(norm[1])), arguments)
        self._ready = None

    def _rounded(self, program: Program, operand: Operand, given: Tensor, factors: Tensor | None) -> Activations:
        """Add the steps that make rows ready as an operand takes them; those of the operand before it may be."""
        key = operand.rounding, operand.blocks
        if key not in self._activations:
            self._activations[key] = Activations.room(ROWS, operand.blocks, operand.product.floats)
        room, blocks = self._activations[key], operand.blocks
        ready = (key, given.data_ptr(), None if factors is None else tuple(factors.tolist()))
        if given is self.normed and ready == self._ready:
            return room
        self._ready = ready
        if factors is not None:
            scaled = self._scaled[: ROWS * given.shape[1]]
            program.add(kernel(rows.scale()), [
                program.at, given.data_ptr(), given.shape[1], factors.data_ptr(), scaled.data_ptr(),
            ])  # fmt: skip
        program.add(rounding_kernel(operand.rounding), [
            program.at, (given if factors is None else scaled).data_ptr(), given.shape[1], *room.addresses(),
            blocks.count, blocks.row,
        ])  # fmt: skip
        return room

    # passes

    def new_cache(self, reserve: int = 0) -> Any:
        """Return an empty cache with room for `reserve` tokens, or one that keeps codes and grows."""
        if self._kept is not None:
            return CodedCache(len(self._lines), self.heads, *self._kept)
        return ContiguousCache(len(self._lines), self.heads, reserve)

    def cut(self, cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens."""
        cache.cut(length)

    def reach(self, cache: Any) -> int | None:
        """Return how many tokens the next pass may add, see `Engine`."""
        bound: int | None = cache.reach()
        return bound

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[Any, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Add the new tokens of every sequence to its cache; return logits (rows, vocabulary), float32.

        Rows are in the order of `work`; with `last_only` there is one row a sequence, that of its last token.
        """
        places = self._places(work)
        flat = torch.tensor([[token for _, tokens in work for token in tokens]])
        hidden = self._embedding.module(flat)[0].float()
        for start in range(0, len(hidden), ROWS):
            part = hidden[start : start + ROWS]
            self.places[: len(part)] = places[start : start + ROWS]
            self.stream[: len(part)] = part
            self._blocks[len(part) > 1].run(len(part), machine.threads_for(1 << 30))
            part.copy_(self.stream[: len(part)])
        ends: list[int] = []
        for cache, tokens in work:
            cache.added(len(tokens))
            ends.append((ends[-1] if ends else -1) + len(tokens))
        return self._logits(hidden[ends] if last_only else hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = torch.empty(len(hidden), self.head.outputs)
        for start in range(0, len(hidden), ROWS):
            part = hidden[start : start + ROWS]
            self.chosen[: len(part)] = part
            program, arguments = self._heads_of[len(part) > 1]
            arguments[_OUT] = logits[start:].data_ptr()
            program.run(len(part), machine.threads_for(1 << 30))
        return logits

    def _places(self, work: Sequence[tuple[Any, Sequence[int]]]) -> Tensor:
        """Make room for new tokens; return where each row stands, int64 [rows, numbers of `PLACE`]."""
        longest = max(cache.length + len(tokens) for cache, tokens in work)
        if longest > len(self._tables[0]):
            self._tables = self._rotated(longest + longest // 2)
            self._write()
        return torch.cat([cache.places(len(tokens)) for cache, tokens in work])


_NAMES = ("query", "key", "value", "output", "gate", "up", "down")


def _product(
    program: Program, operand: Operand, given: Activations, out: Tensor, several: bool, at: int = 0, add: bool = False
) -> Any:
    """Add a product whose outputs go to columns of `out` from `at` on; return its arguments."""
    place = out.data_ptr() + 4 * at
    arguments = operand.arguments(program.at, given, place, out.shape[1], add)
    return program.add(product_kernel(operand.product, several), arguments)


def _operand(module: Any, name: str) -> Operand:
    made = getattr(module, "operand", None)
    operand = None if made is None else made()
    if not isinstance(operand, Operand):
        raise InputError(f"{name} is a {type(module).__name__}, for which there is no kernel")
    return operand


def _taken(module: Any, name: str) -> tuple[Operand, Tensor | None]:
    """Return a layer's operand and the factors of its inputs, float32, where it stands behind some."""
    if isinstance(module, ScaledInput):
        return _operand(module.layer, name), module.factors.float().contiguous()
    return _operand(module, name), None


def _check_unwatched(view: nn.Module) -> None:
    """Refuse a model in which a hook would be passed by. Raises InputError."""
    for name, module in view.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise InputError(f"something watches the forward of {name or 'the model'}")
