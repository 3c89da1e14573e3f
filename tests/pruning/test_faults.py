"""What stands in the way of pruning is said in one line; nothing is changed then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from calibrated_hosts import Host
from host_models import host
from lessen.errors import BudgetError, ConfigError, InputError, NothingMatchedError
from lessen.methods.weights.magnitude_pruning import MagnitudePruning
from lessen.pruning.layout import read_layout
from lessen.recipe import Recipe


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hooked(layer):
    layer.q_proj.register_forward_hook(lambda *_: None)


def parametrised(layer):
    parametrize.register_parametrization(layer.v_proj, "weight", Twice())


def tied(layer):
    layer.k_proj.weight = layer.v_proj.weight


def own_forward(layer):
    layer.o_proj.__class__ = type("Loud", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hooked, "q_proj carries forward hooks, which would see other widths; remove them"),
        (parametrised, "v_proj is parametrised; remove the parametrisation"),
        (tied, "weight is tied to another layer; untie it"),
        (own_forward, "o_proj is a Loud, not a plain linear layer"),
    ],
)
def test_what_is_in_the_way_is_named(change, words):
    model = host("llama")
    change(model.model.layers[1].self_attn)
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(InputError, match=words) as caught:
        Recipe([MagnitudePruning()]).apply(model, Host("llama"))
    assert "model.layers.1.self_attn" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_heads_that_key_heads_do_not_divide_are_refused():
    model = host("llama")
    for name in ("k_proj", "v_proj"):
        setattr(model.model.layers[0].self_attn, name, nn.Linear(32, 3 * 8, bias=False))
    with pytest.raises(InputError, match="4 heads for 3 key and value heads, which do not divide them"):
        read_layout(model)


def test_a_budget_that_leaves_a_block_without_heads_names_the_least():
    with pytest.raises(BudgetError, match=r"heads = 0.2 would leave model.layers.0 without any of its 2; .* is 0.25"):
        Recipe([MagnitudePruning(heads=0.2)]).apply(host("llama"), Host("llama"))
    with pytest.raises(BudgetError, match=r"0.05 of the multiply-adds cannot be reached: .* 0.\d+ is left") as caught:
        Recipe([MagnitudePruning(share=0.05)]).apply(host("llama"), Host("llama"))
    assert 0.05 < caught.value.nearest < 1


def test_what_no_configuration_says_is_refused_where_all_shall_be_equal():
    with pytest.raises(ConfigError, match="width of a head as width / heads"):
        Recipe([MagnitudePruning(heads=0.5, uniform=True)]).apply(host("minilm"), Host("minilm"))


def test_a_model_that_is_small_enough_has_nothing_to_take_out():
    made, _ = Recipe([MagnitudePruning(share=0.7, multiple=4)]).apply(host("llama"), Host("llama"))
    with pytest.raises(NothingMatchedError, match="0.8 of the macs or less is left already"):
        Recipe([MagnitudePruning(share=0.8)]).apply(made, Host("llama"))


def test_tied_embeddings_are_cut_together_and_stay_tied():
    model = host("llama", tie_word_embeddings=True)
    made, _ = Recipe([MagnitudePruning(width=0.5, units=0.7, multiple=4)]).apply(model, Host("llama"))
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert made.lm_head.weight.shape == (96, 16)


def test_the_width_of_two_towers_is_refused():
    with pytest.raises(InputError, match="CLIPModel has 2 stacks of blocks"):
        Recipe([MagnitudePruning(width=0.5)]).apply(host("clip"), Host("clip"))
