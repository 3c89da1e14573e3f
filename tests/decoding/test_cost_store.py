from __future__ import annotations

import pytest
import torch

from lessen.decoding.cost import CostCurve
from lessen.decoding.cost_store import load, place_of, save
from tiny_models import llama


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path))


def test_a_curve_comes_back_as_it_was_kept(model):
    place, curve = place_of(model, True), CostCurve((1, 4), (0.1, 0.15), packed_rows=(4, 64))
    assert load(place) is None
    save(place, curve)
    assert load(place) == curve


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"sizes": [1, 2], "times": [1, 1]}',
        b"[]",
        b'{"sizes": [1]}',
        b'{"sizes": [2, 1], "times": [1, 1]}',
        b'{"sizes": "x", "times": 3}',
    ],
)
def test_a_damaged_curve_is_measured_again(model, content):
    place = place_of(model, True)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert load(place) is None


def test_another_model_dtype_or_packing_has_its_own_curve(model):
    models = [model, llama(vocab=41), llama().to(torch.bfloat16)]
    places = [place_of(each, packed) for each in models for packed in (True, False)]
    assert len(set(places)) == 6
    assert place_of(llama(seed=5), True) == places[0]
