"""Checks of a method's card and knobs, generated from their declared types and ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from lessen.errors import explain
from lessen.method import Method
from lessen.testing.case import Case, expect

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def card_is_complete(case: Case) -> None:
    """The card has a slug, a one-sentence summary and a source, and every knob says what it means."""
    card, method = case.method.card, case.method
    expect(SLUG.fullmatch(card.name) is not None, f"the name {card.name!r} is not a slug of a-z, 0-9 and hyphens")
    expect(card.summary.endswith(".") and "\n" not in card.summary, "the summary is not one sentence with a full stop")
    expect(bool(card.source.strip()), "the card names no source")
    expect(bool((type(method).__doc__ or "").strip()), "the class has no docstring")
    for name, field in type(method).model_fields.items():
        expect(bool(field.description), f"the knob {name!r} has no description")


def knobs_round_trip(case: Case) -> None:
    """A method equals the one built from its own JSON, and cannot be changed."""
    method = case.method
    again = type(method)(**method.model_dump(mode="json"))
    expect(again == method, f"{method!r} is not rebuilt from its knobs: {again!r}")
    for name in type(method).model_fields:
        try:
            setattr(method, name, getattr(method, name))
        except ValidationError:
            continue
        expect(False, f"the knob {name!r} can be changed: the method is not frozen")


def ranges_are_enforced(case: Case) -> None:
    """Values just outside each declared range, of wrong type or not finite, are refused in one line."""
    cls = type(case.method)
    for name, schema in cls.model_json_schema().get("properties", {}).items():
        for value in bad_values(schema):
            _refuses(cls, {name: value})
    _refuses(cls, {"no_such_knob": 1})


def every_number_is_bounded(case: Case) -> None:
    """Each numeric knob declares a lower and an upper bound, so that search knows its space."""
    for name, schema in type(case.method).model_json_schema().get("properties", {}).items():
        for branch in _branches(schema):
            if branch.get("type") in ("integer", "number") and "enum" not in branch and "const" not in branch:
                low = "minimum" in branch or "exclusiveMinimum" in branch
                high = "maximum" in branch or "exclusiveMaximum" in branch
                expect(low and high, f"the knob {name!r} has no {'lower' if not low else 'upper'} bound")


def _refuses(cls: type[Method], knobs: dict[str, Any]) -> None:
    try:
        cls(**knobs)
    except ValidationError as error:
        line = explain(error, cls.card.name, cls.model_fields)
        expect("\n" not in line and next(iter(knobs)) in line, f"the refusal of {knobs} does not name the knob: {line}")
        return
    expect(False, f"{cls.card.name} accepts {knobs}, which its declaration excludes")


def bad_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield values that a JSON schema of one knob excludes."""
    branches = _branches(schema)
    kinds = {branch.get("type") for branch in branches}
    for branch in branches:
        yield from _beyond(branch)
    if "number" in kinds:
        yield from (math.nan, math.inf)
    if not kinds & {"string", "object", "array", "null"} and "boolean" not in kinds:
        yield "no-such-value"
    if any("enum" in branch or "const" in branch for branch in branches):
        yield "no-such-value"


def _beyond(branch: dict[str, Any]) -> Iterator[Any]:
    step = 1 if branch.get("type") == "integer" else 1e-3
    if "minimum" in branch:
        yield branch["minimum"] - step
    if "exclusiveMinimum" in branch:
        yield branch["exclusiveMinimum"]
    if "maximum" in branch:
        yield branch["maximum"] + (step if branch.get("type") == "integer" else abs(branch["maximum"]) * 1e-3 + step)
    if "exclusiveMaximum" in branch:
        yield branch["exclusiveMaximum"]


def _branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return list(schema["anyOf"]) if "anyOf" in schema else [schema]
