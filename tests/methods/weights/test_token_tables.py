"""Token embeddings and heads: rounded together where they are one matrix, stored once, read as the same codes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from host_models import answer, host, inputs
from lessen.architectures.loading import load_host
from lessen.artifact import folder as artifact
from lessen.errors import ConfigError, DataError, NothingMatchedError
from lessen.method import Context
from lessen.methods.sites import state_bytes
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights.dynamic_int8 import DynamicInt8Linears
from lessen.methods.weights.half import HalfLinears
from lessen.methods.weights.rtn import RTN
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.half import HalfLinear
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding, ScaledGroupQuantizedEmbedding
from lessen.stored.tables.half_embedding import HalfEmbedding
from tiny_models import llama

KNOBS = {"min_weights": 64, "group": 32}


def applied(model, method=RTN, **knobs):
    context = Context()
    return method(**knobs).apply(model, None, context), context.findings


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_reads_the_codes_of_the_embedding_and_an_untied_one_its_own(tied, tmp_path):
    model = llama(vocab=96, tie_word_embeddings=tied)
    weights = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    made, findings = applied(model, table_bits=6, **KNOBS)
    table, head = made.get_input_embeddings(), made.get_output_embeddings()
    assert isinstance(table, GroupQuantizedEmbedding)
    assert isinstance(head, GroupQuantizedLinear)
    assert (table.bits, head.bits) == (6, 6)
    assert (table.codes is head.codes) == tied
    assert findings["tables"]["model.embed_tokens"]["heads"] == ["lm_head"]
    for form, weight in zip((table, head), weights, strict=True):
        assert float((form.dequantise() - weight).abs().max()) <= float(form.scales.max()) * 0.51
    assert torch.equal(table(torch.arange(96)), table.dequantise())
    # the artifact holds the shared codes once, and so does the memory of what is loaded
    base = llama(vocab=96, tie_word_embeddings=tied)
    size = artifact.save(tmp_path / "made", made, base)
    loaded = artifact.load(tmp_path / "made", base)
    given = {"input_ids": torch.arange(12)[None]}
    assert torch.equal(answer(loaded, given), answer(made, given))
    assert (loaded.model.embed_tokens.codes is loaded.lm_head.codes) == tied
    alone = 96 * (32 * 6 // 8 + 4)
    assert state_bytes(made) == state_bytes(loaded)
    other, _ = applied(llama(vocab=96, tie_word_embeddings=tied), table_bits=None, skip="lm_head", **KNOBS)
    assert state_bytes(other) - state_bytes(made) == (1 if tied else 2) * (96 * 32 * 4 - alone)
    assert size < 2 * state_bytes(made) + 60_000


def test_scope_and_knob_decide_about_tables():
    assert isinstance(applied(llama(), table_bits=None, **KNOBS)[0].get_input_embeddings(), nn.Embedding)
    made, findings = applied(llama(), skip="model.embed_tokens", **KNOBS)
    assert isinstance(made.get_input_embeddings(), nn.Embedding)
    assert findings["skipped"]["model.embed_tokens"] == "is in `skip`"
    made, _ = applied(llama(vocab=96), only="model.embed_tokens", **KNOBS)
    assert isinstance(made.get_input_embeddings(), GroupQuantizedEmbedding)
    assert type(made.model.layers[0].mlp.up_proj) is nn.Linear
    made, findings = applied(llama(vocab=96, tie_word_embeddings=True), skip="lm_head", **KNOBS)
    assert isinstance(made.get_input_embeddings(), nn.Embedding)
    assert findings["skipped"]["model.embed_tokens"] == "shares its matrix with lm_head, which is in `skip`"
    with pytest.raises(ConfigError, match="embed_token'"):
        applied(llama(), only="model.embed_token", **KNOBS)


def test_a_head_that_equals_the_embedding_though_the_model_does_not_tie_them_is_stored_once():
    model = llama(vocab=96, tie_word_embeddings=False)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    made, findings = applied(model, **KNOBS)
    assert made.lm_head.codes is made.model.embed_tokens.codes
    assert findings["tables"]["model.embed_tokens"]["stored"] == "once"


@pytest.mark.parametrize("name", ["bert", "minilm", "roberta", "gpt2", "opt", "t5", "clip", "qwen3", "bloom"])
def test_every_family_answers_with_its_tables_in_eight_bits(name):
    model = host(name)
    before = answer(model, inputs(name))
    made, findings = applied(model, only=None, bits=8, **KNOBS)
    assert any(isinstance(module, GroupQuantizedEmbedding) for module in made.modules())
    after = answer(made, inputs(name))
    assert float((after - before).norm() / before.norm()) < 0.05
    assert len(findings["tables"]) == 1


def test_a_table_that_scales_its_rows_goes_on_doing_so(tmp_path):
    model = host("gemma3")
    before = answer(model, inputs("gemma3"))
    made, findings = applied(copy.deepcopy(model), bits=8, **KNOBS)
    table, head = made.get_input_embeddings(), made.get_output_embeddings()
    assert isinstance(table, ScaledGroupQuantizedEmbedding)
    assert table.factor == float(model.get_input_embeddings().embed_scale)
    assert table.codes is head.codes
    assert findings["tables"]["model.embed_tokens"]["heads"] == ["lm_head"]
    ids = torch.arange(5)
    torch.testing.assert_close(table(ids), head.dequantise()[ids] * table.factor)
    torch.testing.assert_close(table.dequantise(), head.dequantise())
    after = answer(made, inputs("gemma3"))
    assert float((after - before).norm() / before.norm()) < 0.05
    artifact.save(tmp_path / "small", made, model)
    assert torch.equal(answer(artifact.load(tmp_path / "small", model=model), inputs("gemma3")), after)


def test_other_readers_and_forms_without_a_factor_leave_such_a_table_alone():
    made, findings = applied(host("gemma3"), HalfLinears)
    assert "with a forward of its own" in findings["skipped"]["model.embed_tokens"]
    model = host("gemma3")
    odd = type(
        "Odd", (type(model.get_input_embeddings()),), {"forward": lambda self, ids: torch.tanh(self.weight[ids])}
    )
    model.get_input_embeddings().__class__ = odd
    made, findings = applied(model, **KNOBS)
    assert "read by a Odd with a forward of its own" in findings["skipped"]["model.embed_tokens"]
    assert type(made.lm_head) is nn.Linear


@pytest.mark.parametrize("tied", [True, False])
def test_sixteen_bits_take_half_of_the_tables_too(tied, tmp_path):
    model = llama(vocab=96, tie_word_embeddings=tied)
    before, base = state_bytes(model), llama(vocab=96, tie_word_embeddings=tied)
    made, _ = applied(model, HalfLinears)
    assert isinstance(made.get_input_embeddings(), HalfEmbedding)
    assert isinstance(made.get_output_embeddings(), HalfLinear)
    norms = sum(p.numel() for name, p in base.named_parameters() if "norm" in name)
    assert state_bytes(made) == (before - 4 * norms) // 2 + 4 * norms
    artifact.save(tmp_path / "half", made, base)
    loaded = artifact.load(tmp_path / "half", base)
    given = {"input_ids": torch.arange(12)[None]}
    assert torch.equal(answer(loaded, given), answer(made, given))
    wanted = answer(base, given)
    assert float((answer(made, given) - wanted).norm() / wanted.norm()) < 0.02


def test_conv1d_becomes_an_equal_linear_layer_for_every_method():
    before = answer(host("gpt2"), inputs("gpt2"))
    turned = linearised(host("gpt2"))
    assert not [module for module in turned.modules() if type(module).__name__ == "Conv1D"]
    assert torch.allclose(answer(turned, inputs("gpt2")), before, atol=1e-5)
    for method, knobs in ((RTN, KNOBS | {"bits": 8}), (DynamicInt8Linears, {"min_weights": 64}), (HalfLinears, {})):
        made, findings = applied(host("gpt2"), method, **knobs)
        after = answer(made, inputs("gpt2"))
        assert float((after - before).norm() / before.norm()) < 0.05
        assert "transformer.h.0.attn.c_attn" not in findings.get("skipped", {})


def test_a_file_that_ties_head_and_embedding_under_a_configuration_that_does_not_is_one_line(tmp_path):
    llama(vocab=96, tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(DataError, match=r"no tensor 'lm_head.weight'.*tie_word_embeddings") as caught:
        load_host(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_nothing_to_round_is_said():
    with pytest.raises(NothingMatchedError, match="rtn found nothing to act on"):
        applied(llama(), min_weights=10**8)
