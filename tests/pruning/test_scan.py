"""Errors of single parts: replayed questions give what whole ones give, and less is computed."""

from __future__ import annotations

import pytest
import torch

from host_models import answer, host, inputs
from lessen.errors import InputError
from lessen.log import SILENT
from lessen.pruning.choice import Choice
from lessen.pruning.layout import read_layout
from lessen.pruning.masks import masked
from lessen.pruning.replay import Replay
from lessen.pruning.scan import errors, weakest_blocks
from lessen.pruning.scores import by_magnitude


def quality(model, name):
    return lambda: -float(answer(model, inputs(name)).double().square().mean())


@pytest.mark.parametrize("name", ["minilm", "clip"])
def test_errors_are_those_of_models_without_the_part(name):
    model = host(name)
    layout = read_layout(model)
    last = layout.layers[-1]
    last.block.attention.output.module.weight.data[:, : last.columns] = 0  # a head that nobody hears
    question = quality(model, name)
    base = question()
    found = errors(layout, question, by_magnitude(layout), 4, Choice(), SILENT)
    assert question() == base
    assert float(found.heads[last.path][0]) == 0.0
    for layer in (layout.layers[0], last):
        for group in range(layer.groups):
            kept = torch.ones(layer.groups, dtype=torch.bool)
            kept[group] = False
            with masked(layout, Choice(heads={layer.path: kept})):
                assert float(found.heads[layer.path][group]) == pytest.approx(base - question(), abs=1e-7)
        worst = torch.argsort(-by_magnitude(layout).units[layer.path], stable=True)[-layer.hidden // 4 :]
        kept = torch.ones(layer.hidden, dtype=torch.bool)
        kept[worst] = False
        with masked(layout, Choice(units={layer.path: kept})):
            error = float(found.units[layer.path][worst].sum())
            assert error == pytest.approx(base - question(), abs=1e-6)


def test_what_stands_before_the_part_is_not_computed_again():
    model = host("clip")
    layout = read_layout(model)
    calls: list[str] = []
    for layer in layout.layers:
        layer.block.feed_forward.up.module.register_forward_hook(lambda *_, path=layer.path: calls.append(path))
    replay = Replay(layout, quality(model, "clip"))
    assert len(calls) == len(layout.layers)
    calls.clear()
    last = layout.layers[1]
    assert replay.ask(last) == pytest.approx(replay.value, abs=1e-9)
    assert calls == [last.path]
    replay.question = lambda: sum(quality(model, "clip")() for _ in range(2))
    with pytest.raises(InputError, match="is called more often than when the model was first asked"):
        replay.ask(last)


def test_blocks_are_dropped_one_by_one_where_they_are_missed_least():
    model = host("minilm", num_hidden_layers=4)
    layout = read_layout(model)
    question = quality(model, "minilm")
    stays = weakest_blocks(layout, question, Choice(), 2, SILENT)["encoder.layer"]
    one_less = []
    for number in range(4):
        kept = torch.ones(4, dtype=torch.bool)
        kept[number] = False
        with masked(layout, Choice(layers={"encoder.layer": kept})):
            one_less.append(question())
    first = max(range(4), key=one_less.__getitem__)
    assert not stays[first]
    assert int(stays.sum()) == 2
    assert int(weakest_blocks(layout, question, Choice(), 9, SILENT)["encoder.layer"].sum()) == 1
