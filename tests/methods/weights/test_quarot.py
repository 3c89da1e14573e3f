"""Rotations: orthonormal at every size, exact in a model, and worth something before weights are rounded."""

from __future__ import annotations

import math

import pytest
import torch

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.artifact import folder as artifact
from lessen.errors import InputError, NothingMatchedError
from lessen.method import Context
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.quarot import QuaRot
from lessen.methods.weights.rtn import RTN
from lessen.stored.linears.rotated import RotatedInput, RotatedNorm, draw_signs, factors, rotate, rotate_back
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding


def dense(size):
    return rotate(torch.eye(size, dtype=torch.float64), torch.ones(size)).t()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 12, 13, 28, 36, 48, 52, 64, 100, 192, 384, 576, 1024, 1536])
def test_every_size_has_an_orthonormal_rotation_that_can_be_turned_back(size):
    turned = dense(size)
    assert torch.allclose(turned @ turned.t(), torch.eye(size, dtype=torch.float64), atol=1e-12)
    signs = draw_signs(size, torch.Generator().manual_seed(1))
    x = torch.randn(3, 2, size, dtype=torch.float64)
    assert torch.allclose(rotate(x, signs), x * signs @ turned.t(), atol=1e-12)
    assert torch.allclose(rotate_back(rotate(x, signs), signs), x, atol=1e-12)
    assert math.prod(len(factor) for factor in factors(size)) == size


@pytest.mark.parametrize("size", [12, 20, 28, 36, 44, 60, 576, 1536, 384, 960])
def test_sizes_with_a_hadamard_matrix_spread_each_value_evenly(size):
    assert torch.allclose(dense(size).abs(), torch.full((size, size), size**-0.5, dtype=torch.float64), atol=1e-12)


RESIDUAL = {"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"}


@pytest.mark.parametrize(
    "name", [*sorted(RESIDUAL), "gemma2", "olmo2", "gpt2", "gpt_neox", "opt", "bert", "vit", "t5", "clip"]
)
def test_a_rotated_model_answers_as_before(name):
    model, context = host(name), Context()
    before = answer(model, inputs(name))
    made = QuaRot().apply(model, Host(name), context)
    after = answer(made, inputs(name))
    assert float((after - before).norm() / before.norm()) < 1e-4
    done = context.findings["rotated"]
    assert (done["residual"] > 0) == (name in RESIDUAL), context.findings.get("left")
    assert ("left" in context.findings) == (name not in RESIDUAL)
    assert done["heads"] > 0
    assert (done["hidden"] > 0) == (name != "t5")  # whose forward reads the weight of its down projection


@pytest.mark.parametrize("tied", [True, False])
def test_tied_matrices_stay_one_and_an_artifact_brings_all_back(tied, tmp_path):
    model = host("llama", tie_word_embeddings=tied)
    before = answer(model, inputs("llama"))
    made = QuaRot().apply(model, Host("llama"), Context())
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    assert made.model.norm.again == tied
    made = RTN(bits=8, group=32, min_weights=64).apply(made, None, Context())
    assert isinstance(made.model.embed_tokens, GroupQuantizedEmbedding)
    assert (made.lm_head.codes is made.model.embed_tokens.codes) == tied
    after = answer(made, inputs("llama"))
    assert float((after - before).norm() / before.norm()) < 0.05
    base = host("llama", tie_word_embeddings=tied)
    artifact.save(tmp_path / "made", made, base)
    assert torch.equal(answer(artifact.load(tmp_path / "made", base), inputs("llama")), after)


def spiky():
    """A Llama with a few large input channels and hidden units, as trained models have."""
    model = host("llama")
    for layer in model.model.layers:
        for linear in (layer.mlp.down_proj, layer.mlp.up_proj, layer.self_attn.q_proj, layer.self_attn.o_proj):
            linear.weight.data[:, 5] *= 8
    return model


@pytest.mark.parametrize("method", [RTN(bits=3, group=32, min_weights=64, table_bits=None, skip="lm_head"),
                                    GPTQ(bits=3, group=32, min_weights=64, table_bits=None)])  # fmt: skip
def test_rounding_after_rotation_errs_less_where_values_stick_out(method):
    exact, errors = answer(spiky(), inputs("llama")), []
    for rotated in (False, True):
        model, context = spiky(), Context()
        if rotated:
            model = QuaRot().apply(model, Host("llama"), Context())
        made = method.apply(model, Host("llama"), context)
        errors.append(float((answer(made, inputs("llama")) - exact).norm() / exact.norm()))
    assert errors[1] < errors[0]
    assert "model.layers.0.mlp.down_proj.layer" in context.findings["layers"]


def test_what_is_rotated_already_what_has_no_blocks_and_what_reads_states_itself_is_refused():
    made = QuaRot().apply(host("llama"), Host("llama"), Context())
    assert any(isinstance(module, RotatedInput) for module in made.modules())
    assert isinstance(made.model.norm, RotatedNorm)
    with pytest.raises(NothingMatchedError, match="it is rotated already"):
        QuaRot().apply(made, Host("llama"), Context())
    with pytest.raises(NothingMatchedError, match="no stack of Transformer blocks"):
        QuaRot().apply(torch.nn.Sequential(torch.nn.Tanh()), Host("llama"), Context())
    with pytest.raises(NothingMatchedError, match="the residual stream of bert|the residual stream of encoder"):
        QuaRot(heads=False, hidden=False).apply(host("bert"), Host("bert"), Context())
    model = host("llama")
    model.model.layers[0].register_forward_hook(lambda _m, _i, out: out.clamp(-0.5, 0.5))
    with pytest.raises(InputError, match="something reads them that is neither norm nor linear layer"):
        QuaRot().apply(model, Host("llama"), Context())
