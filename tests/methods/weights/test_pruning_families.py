"""Families that spell layers and configurations in ways of their own: pruned, saved, loaded, opened by transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.artifact import folder as artifact
from lessen.errors import ConfigError, InputError
from lessen.export.hf import export_hf
from lessen.methods.adapt.retrain import Retrain
from lessen.methods.weights.layer_drop import LayerDrop
from lessen.methods.weights.magnitude_pruning import MagnitudePruning
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe

SPELT = ("gpt2", "falcon")
"""Conv1D with its matrix the other way round, and a subclass of the linear layer with a forward of its own."""


def opened(made, name, tmp_path):
    """Through an artifact into a folder, and by transformers alone out of it."""
    artifact.save(tmp_path / "a", made, host(name))
    loaded = artifact.load(tmp_path / "a", model=host(name, seed=3))
    assert torch.equal(answer(loaded, inputs(name)), answer(made, inputs(name)))
    export_hf(loaded, None, tmp_path / "hf", dtype="float32")
    return type(made).from_pretrained(tmp_path / "hf").eval()


@pytest.mark.parametrize(
    "name", [*SPELT, "gptj", "gpt_bigcode", "bart", "whisper", "distilbert", "t5", "clip", "mpnet"]
)
def test_fewer_units_are_said_by_the_configuration(name, tmp_path):
    made, _ = Recipe([MagnitudePruning(units=0.5, uniform=True, multiple=4)]).apply(host(name), Host(name))
    plain = opened(made, name, tmp_path)
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in host(name).parameters())
    assert torch.equal(answer(plain, inputs(name)), answer(made, inputs(name)))


@pytest.mark.parametrize("name", [*SPELT, "bart", "whisper", "distilbert", "dinov2", "clip"])
def test_fewer_blocks_are_said_by_the_configuration(name, tmp_path):
    made, records = Recipe([LayerDrop(layers=0.5)]).apply(host(name), Host(name))
    plain = opened(made, name, tmp_path)
    assert sum(len(stack["blocks"]) for stack in records[0].findings["kept"].values()) in (1, 2)
    assert torch.equal(answer(plain, inputs(name)), answer(made, inputs(name)))


@pytest.mark.parametrize("name", SPELT)
def test_layers_that_are_linear_in_other_words_are_cut_and_refitted(name):
    model, wanted = host(name), answer(host(name), inputs(name))
    steps = [MagnitudePruning(units=0.5, multiple=4), Retrain(by="blocks", ridge=1e-2)]
    pruned, found = (Recipe(steps[:count]).apply(model, Host(name, 8))[0] for count in (1, 2))
    errors = [float((answer(one, inputs(name)) - wanted).square().mean()) for one in (pruned, found)]
    assert errors[1] < 0.8 * errors[0]
    before = MagnitudePruning(share=0.8, of="parameters", multiple=4)
    names = [type(module).__name__ for module in model.modules()]
    assert before.forecast(model, Host(name), None).bytes
    assert [type(module).__name__ for module in model.modules()] == names, "a forecast changes nothing"


def test_a_square_matrix_goes_back_the_other_way_round(tmp_path):
    made, _ = Recipe([RTN(bits=8, group=32, only="*.mlp.c_fc")]).apply(host("gpt2"), Host("gpt2"))
    assert type(made.transformer.h[0].attn.c_proj) is nn.Linear  # square: no size tells which way it lies
    export_hf(made, None, tmp_path / "hf", dense=True)
    plain = type(made).from_pretrained(tmp_path / "hf").eval()
    assert torch.allclose(answer(plain, inputs("gpt2")), answer(made, inputs("gpt2")), atol=1e-5)


@pytest.mark.parametrize("name", SPELT)
def test_a_hook_on_such_a_layer_is_in_the_way(name):
    model = host(name)
    layer = model.transformer.h[0].mlp
    layer = layer.c_fc if name == "gpt2" else layer.dense_h_to_4h
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"h\.0\.mlp\.\w+ carries forward hooks"):
        Recipe([MagnitudePruning(units=0.5)]).apply(model, Host(name))


@pytest.mark.parametrize("name", ["bloom", "dinov2", "mpt"])
def test_a_width_that_no_configuration_says_is_refused_before_anything_is_cut(name):
    with pytest.raises(ConfigError, match="does not say how wide feed-forward layers are"):
        Recipe([MagnitudePruning(units=0.5, uniform=True)]).apply(host(name), Host(name))


def test_heads_stay_where_all_blocks_read_one_table_of_position_biases():
    made, records = Recipe([MagnitudePruning(share=0.8, of="parameters", multiple=4)]).apply(
        host("mpnet"), Host("mpnet")
    )
    assert made.encoder.layer[0].attention.attn.q.out_features == 32
    assert max(records[0].findings["kept"]["encoder.layer"]["units"]) < 48


class Plain(nn.Module):
    """torch's own encoder, whose attention reads the matrix of its output and does not call the layer."""

    def __init__(self, first=False):
        super().__init__()
        self.table = nn.Embedding(96, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, input_ids):
        return self.encoder(self.table(input_ids))


class PlainHost(Host):
    def inputs(self, batch):
        return batch[0]["input_ids"]

    def forward(self, model, batch):
        return model(batch[0]["input_ids"])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "step", [MagnitudePruning(units=0.5, multiple=4), LayerDrop(layers=0.67)], ids=lambda s: s.card.name
)
def test_the_encoder_of_torch_is_cut_refitted_and_saved(first, step, tmp_path):
    torch.manual_seed(0)
    model, task, ids = Plain(first).eval(), PlainHost("minilm", 8), inputs("minilm")["input_ids"]
    cut, _ = Recipe([step]).apply(model, task)
    made, records = Recipe([step, Retrain(by="blocks", ridge=1e-2)]).apply(model, task)
    assert all(path.endswith("linear2") for path in records[1].findings["energy left missing"])
    artifact.save(tmp_path / "a", made, model)
    loaded = artifact.load(tmp_path / "a", model=Plain(first).eval())
    with torch.no_grad():
        wanted = model(ids)
        assert torch.equal(loaded(ids), made(ids))
        assert (made(ids) - wanted).square().mean() < 0.95 * (cut(ids) - wanted).square().mean()
