"""Experts that a model keeps as stacks of matrices are no linear layers, stay, and are named."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.log import Log
from lessen.method import Context
from lessen.methods.weights.rtn import RTN
from tiny_language import language_model


class Heard(Log):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def rounded(model, **knobs):
    context = Context(seed=0, log=Heard())
    RTN(**knobs).apply(model, None, context)
    return context.findings.get("skipped", {}), [note for note in context.log.notes if "stacks" in note]


def test_experts_are_named_with_what_they_hold():
    model = language_model("Mixtral", num_local_experts=4)
    experts = model.model.layers[0].mlp.experts
    weights = 2 * sum(one.numel() for one in experts.parameters())
    skipped, notes = rounded(model)
    assert skipped["model.layers.1.mlp.experts"].startswith("holds stacks of matrices (gate_up_proj, down_proj)")
    assert len(notes) == 1
    assert notes[0].startswith(f"model.layers.0.mlp.experts and 1 more: {weights:,} weights in stacks of matrices")


def test_places_that_were_not_asked_for_are_no_surprise():
    skipped, notes = rounded(language_model("Mixtral", num_local_experts=4), skip="*.experts")
    assert (skipped["model.layers.0.mlp.experts"], notes) == ("is in `skip`", [])
    skipped, notes = rounded(language_model())
    assert (skipped, notes) == ({}, [])
