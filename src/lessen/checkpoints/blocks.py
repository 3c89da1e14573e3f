"""One piece of a group (some rows of a weight and its moments) to bytes and back, in either mode.

Tables of which few rows moved are coded by the rows that moved: a bit mask over rows, then the piece made of those
rows alone. Rows that did not move keep what the step before holds, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.checkpoints import adam_step, adam_two_steps, coder, exact, near
from lessen.checkpoints.dtypes import SIZES
from lessen.checkpoints.exact import Words
from lessen.checkpoints.near import Need
from lessen.checkpoints.quantisers import Values
from lessen.errors import ArtifactError

Piece = dict[str, Words]
"""By role, the bits of an array [rows * columns] as unsigned integers."""

NEAR, ROWS, CARRY, REPLAY, LINKED = 1, 2, 4, 8, 16
"""Flags of a coded piece: rebuilt nearly; only some rows inside; needs every array of the step before; some of those
rows are predicted from one or two steps of the optimiser; near, and needs the second moment of the step before."""

_ORDER = ("second", "first", "weight", "other")
_ROLES_OF = {Need.WEIGHT: {"weight"}, Need.SECOND: {"weight", "second"}, Need.ALL: {"weight", "second", "first"}}


@dataclass(frozen=True)
class Form:
    """What both sides know of a piece: kinds by role and its rows and columns."""

    kinds: dict[str, str]
    rows: int
    columns: int

    @property
    def roles(self) -> list[str]:
        """Roles present, in coding order: the second moment is the context of the first."""
        return [role for role in _ORDER if role in self.kinds]

    def of_rows(self, rows: int) -> Form:
        """Return the form of a piece with other rows."""
        return Form(self.kinds, rows, self.columns)


def word(kind: str) -> np.dtype[Any]:
    """Return the unsigned dtype that holds the bits of `kind`; an element of 16 bytes is two words of 8."""
    return np.dtype(f"<u{min(8, SIZES[kind])}")


def encode_piece(
    now: Piece, before: Piece | None, form: Form, settings: near.NearSettings | None, moved: NDArray[np.bool_] | None
) -> tuple[int, bytes, Piece]:
    """Code a piece and return (flags, bytes, the piece as it will be rebuilt).

    Args:
        before: what the decoder has of the step before; None in a key frame. It may lack moments in near mode.
        settings: how much may be lost; None codes exactly.
        moved: [rows], which rows differ from the step before; None codes all rows. Needs every role in `before`.
    """
    if moved is None or before is None:
        return _encode(now, before, form, settings)
    inner_form = form.of_rows(int(np.count_nonzero(moved)))
    flags, blob = 0, b""
    rebuilt: Piece = {}
    if inner_form.rows:
        flags, blob, rebuilt = _encode_moved(_rows(now, form, moved), _rows(before, form, moved), inner_form, settings)
    return flags | ROWS | CARRY, coder.join([coder.encode_mask(moved), blob]), _merge(before, rebuilt, form, moved)


def needed_before(flags: int, need: Need) -> Need | None:
    """Return how much of the step before a piece builds on, to give `need` of itself; None if on nothing."""
    if flags & NEAR:
        if flags & CARRY:
            return need
        return Need.SECOND if flags & LINKED and need >= Need.SECOND else Need.WEIGHT
    return Need.ALL if flags & CARRY else None


def decode_piece(flags: int, blob: bytes, before: Piece | None, form: Form, need: Need) -> Piece:
    """Undo `encode_piece`; a near piece gives only the roles that are needed. Raises ArtifactError."""
    if not flags & ROWS:
        return _decode(flags, blob, before, form, need)
    parts = coder.split(blob)
    wanted = set(form.kinds) & _ROLES_OF[need] if flags & NEAR else set(form.kinds)
    if len(parts) != 2 or before is None or wanted - set(before):
        raise ArtifactError("a piece coded by rows lacks what it builds on")
    before = {role: before[role] for role in form.roles if role in wanted}
    moved = coder.decode_mask(parts[0], form.rows)
    rows = int(np.count_nonzero(moved))
    known, inner_form = _rows(before, form, moved), form.of_rows(rows)
    if flags & REPLAY:
        rebuilt = _decode_moved(flags, parts[1], known, inner_form)
    else:
        rebuilt = _decode(flags, parts[1], known, inner_form, need) if rows else {}
    return _merge(before, rebuilt, form, moved)


def _encode_moved(
    now: Piece, before: Piece, form: Form, settings: near.NearSettings | None
) -> tuple[int, bytes, Piece]:
    """Code rows that all moved; in exact mode, those that took one or two steps of Adam apart from the others."""
    if settings is not None or set(form.kinds.items()) != {(role, "F32") for role in adam_step.ROLES}:
        return _encode(now, before, form, settings)
    once, betas = adam_step.moved_once(now, before, form.columns)
    if not once.any():
        return _encode(now, before, form, None)
    replayed = adam_step.encode(_rows(now, form, once), _rows(before, form, once), form.columns, betas)
    parts = [
        coder.encode_mask(once),
        replayed,
        *_encode_rest(
            _rows(now, form, ~once),
            _rows(before, form, ~once),
            form.of_rows(form.rows - int(np.count_nonzero(once))),
            replayed,
        ),
    ]
    return REPLAY | CARRY, coder.join(parts), now


def _encode_rest(now: Piece, before: Piece, form: Form, replayed: bytes) -> list[bytes]:
    """Code rows that moved more than once: a mask of those that moved twice, those, and the others."""
    if not form.rows:
        return [b"", b"", b""]
    betas, book = adam_step.steps_of(replayed)
    twice, moves = adam_two_steps.moved_twice(now, before, form.columns, betas, book)
    mine, others = form.of_rows(int(np.count_nonzero(twice))), form.of_rows(int(np.count_nonzero(~twice)))
    coded = b""
    if mine.rows:
        some = (moves[0][twice], moves[1][twice], moves[2][twice])
        coded = adam_two_steps.encode(
            _rows(now, form, twice), _rows(before, form, twice), form.columns, betas, book, some
        )
    plain = _encode(_rows(now, form, ~twice), _rows(before, form, ~twice), others, None)[1] if others.rows else b""
    return [coder.encode_mask(twice), coded, plain]


def _decode_moved(flags: int, blob: bytes, before: Piece, form: Form) -> Piece:
    parts = coder.split(blob)
    if len(parts) != 5 or set(form.kinds.items()) != {(role, "F32") for role in adam_step.ROLES}:
        raise ArtifactError("a piece coded by replay is malformed")
    once = coder.decode_mask(parts[0], form.rows)
    rebuilt = adam_step.decode(parts[1], _rows(before, form, once), form.columns)
    merged = _merge(before, rebuilt, form, once)
    rest = form.of_rows(form.rows - int(np.count_nonzero(once)))
    if not rest.rows:
        return merged
    return _merge(merged, _decode_rest(flags, parts, _rows(before, form, ~once), rest), form, ~once)


def _decode_rest(flags: int, parts: list[bytes], before: Piece, form: Form) -> Piece:
    twice = coder.decode_mask(parts[2], form.rows)
    merged = before
    if twice.any():
        betas, book = adam_step.steps_of(parts[1])
        rebuilt = adam_two_steps.decode(parts[3], _rows(before, form, twice), form.columns, betas, book)
        merged = _merge(before, rebuilt, form, twice)
    others = form.of_rows(int(np.count_nonzero(~twice)))
    if not others.rows:
        return merged
    plain = _decode(flags & CARRY, parts[4], _rows(before, form, ~twice), others, Need.ALL)
    return _merge(merged, plain, form, ~twice)


def _rows(piece: Piece, form: Form, moved: NDArray[np.bool_]) -> Piece:
    return {role: words.reshape(form.rows, form.columns)[moved].reshape(-1) for role, words in piece.items()}


def _merge(before: Piece, rebuilt: Piece, form: Form, moved: NDArray[np.bool_]) -> Piece:
    merged = {role: words.copy() for role, words in before.items()}
    for role, words in rebuilt.items():
        merged[role].reshape(form.rows, form.columns)[moved] = words.reshape(-1, form.columns)
    return merged


# -- all rows ----------------------------------------------------------------------------------------------------
def _encode(
    now: Piece, before: Piece | None, form: Form, settings: near.NearSettings | None
) -> tuple[int, bytes, Piece]:
    if settings is not None:
        triple = _triple(now, form)
        reference = None if before is None else values_of(before["weight"], "weight", form)
        second = None if before is None or "second" not in before else values_of(before["second"], "second", form)
        if _finite(triple.weight, triple.first, triple.second, reference, second):
            blob, rebuilt, linked = near.encode(triple, reference, settings, second)
            return NEAR | (LINKED if linked else 0), blob, _words(rebuilt, form)
    known = before if before is not None and not set(form.kinds) - set(before) else {}
    parts = [_encode_exact(role, now, known, form) for role in form.roles]
    builds = known and any(
        exact.builds_on_reference(part, word(form.kinds[role]).itemsize)
        for role, part in zip(form.roles, parts, strict=True)
    )
    return CARRY if builds else 0, coder.join(parts), now


def _finite(*arrays: Values | None) -> bool:
    return all(bool(np.isfinite(values).all()) for values in arrays if values is not None)


def _decode(flags: int, blob: bytes, before: Piece | None, form: Form, need: Need) -> Piece:
    if flags & NEAR:
        reference = None if before is None else values_of(before["weight"], "weight", form)
        second = None
        if flags & LINKED and need >= Need.SECOND:
            if before is None or "second" not in before:
                raise ArtifactError("a second moment lacks what it builds on")
            second = values_of(before["second"], "second", form)
        return _words(near.decode(blob, reference, (form.rows, form.columns), need, second), form)
    parts = coder.split(blob)
    if len(parts) != len(form.roles) or (flags & CARRY and (before is None or set(form.kinds) - set(before))):
        raise ArtifactError("an exact piece is malformed or lacks what it builds on")
    known = before if flags & CARRY and before is not None else {}
    now: Piece = {}
    for role, part in zip(form.roles, parts, strict=True):
        kind = form.kinds[role]
        given = _context(role, now, form)
        width = word(kind).itemsize
        now[role] = exact.decode(part, form.rows * form.columns, kind, known.get(role), given, width)
    return now


def _encode_exact(role: str, now: Piece, known: Piece, form: Form) -> bytes:
    reference = known.get(role)
    scale = 1.0
    if role == "second" and form.kinds[role] == "F32" and reference is not None:
        scale = _decay(now[role], reference)
    return exact.encode(now[role], form.kinds[role], reference, _context(role, now, form), scale)


def _context(role: str, now: Piece, form: Form) -> Words | None:
    return now.get("second") if role == "first" and form.kinds.get("second") == "F32" else None


def _decay(now: Words, before: Words) -> float:
    """Return the typical factor between two second moments, from a sample."""
    stride = max(1, now.size // 8192)
    new, old = now[::stride].view(np.float32), before[::stride].view(np.float32)
    usable = (old > 1e-37) & np.isfinite(new) & np.isfinite(old) & (new > 0)
    if not usable.any():
        return 1.0
    return float(np.clip(np.median(new[usable] / old[usable]), 1e-3, 1e3))


# -- bits and numbers ----------------------------------------------------------------------------------------------
def values_of(words: Words, role: str, form: Form) -> Values:
    """Return the numbers that bits are, float32 [rows, columns]."""
    kind = form.kinds[role]
    if kind == "F32":
        values = words.view(np.float32)
    elif kind == "F16":
        values = words.view(np.float16).astype(np.float32)
    else:
        values = (words.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(form.rows, form.columns)


def _bits(values: Values, kind: str) -> Words:
    """Round float32 to `kind` (to nearest, ties to even) and return its bits."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if kind == "F32":
        return flat.view(np.uint32)
    if kind == "F16":
        return flat.astype(np.float16).view(np.uint16)
    wide = flat.view(np.uint32)
    return ((wide + np.uint32(0x7FFF) + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def _triple(piece: Piece, form: Form) -> near.Triple:
    values = {role: values_of(words, role, form) for role, words in piece.items()}
    return near.Triple(values["weight"], values.get("first"), values.get("second"))


def _words(triple: near.Triple, form: Form) -> Piece:
    named = {"weight": triple.weight, "first": triple.first, "second": triple.second}
    return {role: _bits(values, form.kinds[role]) for role, values in named.items() if values is not None}


# -- which rows moved ----------------------------------------------------------------------------------------------
def is_table(shape: tuple[int, ...]) -> bool:
    """Say whether an array has the shape of an embedding table: many short rows."""
    return len(shape) == 2 and shape[0] >= 1024 and shape[0] >= 16 * shape[1]


def row_digests(piece: Piece, form: Form) -> NDArray[np.uint64]:
    """Return a 64-bit digest of every row over all roles, [rows]; equal digests mean an unmoved row."""
    total = np.zeros(form.rows, np.uint64)
    for number, role in enumerate(form.roles):
        factors = np.random.default_rng(number).integers(1, 2**63, form.columns, dtype=np.uint64) | np.uint64(1)
        total += (piece[role].reshape(form.rows, form.columns).astype(np.uint64) * factors).sum(1, dtype=np.uint64)
    return total
