from __future__ import annotations

import threading
import time

import pytest
import torch

from lessen.decoding import attention
from lessen.decoding.attention import attend, attend_in_blocks, mask_of, rule_in_place_of_mask, rule_of, windowed
from lessen.decoding.engine import choose_engine
from lessen.errors import InputError
from tiny_models import mistral


def reference(query, keys, values, allowed):
    """Attention written out in float64, keys repeated for each head."""
    groups = query.shape[0] // keys.shape[0]
    keys, values = (state.repeat_interleave(groups, 0).double() for state in (keys, values))
    scores = query.double() @ keys.transpose(1, 2) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ values).transpose(0, 1)


def states(heads, kv_heads, new, total, seed=0):
    torch.manual_seed(seed)
    return torch.randn(heads, new, 8), torch.randn(kv_heads, total, 8), torch.randn(kv_heads, total, 6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize(("new", "total"), [(1, 30), (5, 30), (70, 70), (400, 430)])
@pytest.mark.parametrize("window", [None, 7, 64])
def test_attention_under_a_rule_is_that_of_the_formula(heads, kv_heads, new, total, window, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 33)
    query, keys, values = states(heads, kv_heads, new, total)
    places = torch.arange(total)
    allowed = windowed(window).allowed(places[total - new :], places)
    want = reference(query, keys, values, allowed)
    assert (attend(query, keys, values, mask_of(allowed, query, keys), None) - want).abs().max() < 1e-5
    assert (attend_in_blocks(query, keys, values, windowed(window), None) - want).abs().max() < 1e-5
    if window is None and new == total:
        assert (attend(query, keys, values, None, None, causal=True) - want).abs().max() < 1e-5


def test_masks_and_arguments_that_are_not_known_are_refused():
    with pytest.raises(InputError, match="position_bias"):
        rule_of(None, {"position_bias": torch.zeros(1)})
    with pytest.raises(InputError, match="some_scale"):
        rule_of(None, {"some_scale": 0.5})
    with pytest.raises(InputError, match="built for one sequence"):
        rule_of(torch.zeros(1, 1, 2, 2), {})
    with pytest.raises(InputError, match="depend on the content"):
        rule_in_place_of_mask(mask_function=lambda *_: None, use_vmap=True)
    assert rule_of(None, {"sliding_window": 3, "dropout": 0.0, "is_causal": True}) is windowed(3)


def test_a_windowed_prompt_needs_no_mask_of_all_places():
    """Peak memory over a pass of 6,000 tokens: a mask alone would be 36 MB as bools and 144 MB as floats, and more a group."""
    psutil = pytest.importorskip("psutil")
    model = mistral(window=64)
    model.config.max_position_embeddings = 8192
    engine = choose_engine(model)
    prompt = [2 + step % 37 for step in range(6000)]
    engine.run([(engine.new_cache(), prompt[:2000])], last_only=True)
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    engine.run([(engine.new_cache(), prompt)], last_only=True)
    done.set()
    watcher.join()
    assert peak[0] - before < 100e6
