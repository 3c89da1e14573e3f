"""Decoding graphs: MatMulNBits holds our values, and a greedy loop under onnxruntime says what `generate` says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from export_models import compact, on_grid
from lessen.errors import ConfigError
from lessen.export.matmul_nbits import block_of, blocks_of, values_of
from lessen.export.onnx_decoder import OnnxDecoder, export_decoder
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding
from tiny_language import language_model


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (96, 64), (96, 96), (40, 40), (600, 256)])
def test_blocks_hold_our_values(bits, inputs, group):
    for weight in (on_grid(5, inputs, bits, group, True), on_grid(5, inputs, bits, group, False, whole=True)):
        blocks = blocks_of(weight, "a")
        assert torch.equal(values_of(blocks), weight.values())
        assert blocks.block in (16, 32, 64, 128, 256)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_reads_the_same_values(bits, symmetric):
    """Its product with single inputs is a column of our weight, to the bit."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from lessen.export.onnx_graph import Graph

    weight = on_grid(7, 96, bits if symmetric else min(bits, 6), 32, symmetric, whole=True)
    layer = GroupQuantizedLinear(96, 7, weight.grid.bits, 32, symmetric, bias=False)
    made = GroupQuantizedLinear.from_codes(torch.nn.Linear(96, 7, bias=False), weight.grid, weight.codes)
    layer.load_state_dict(made.state_dict())
    graph = Graph(0)
    graph.op("Identity", graph.linear(layer, "a", "x"), name="y")
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 96), ("y", 7))
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "g", infos[:1], infos[1:], constants), opset_imports=sets, ir_version=10
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.eye(96, dtype=np.float32)})[0]
    assert np.array_equal(found.T, weight.values().numpy())


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_a_greedy_loop_says_what_generate_says(family, tmp_path):
    model = compact(language_model(family, **({"sliding_window": 8} if family == "Mistral" else {})), symmetric=True)
    written = export_decoder(model, tmp_path / "m.onnx")
    assert written.packed == 14
    assert written.share < 1e-5
    decoder, prompt = OnnxDecoder(tmp_path / "m.onnx"), [5, 9, 12, 40, 41, 77]
    ids = torch.tensor([prompt])
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
    )
    assert decoder.greedy(prompt, 20) == wanted[0, len(prompt) :].tolist()


def test_rows_padded_on_the_left_say_what_they_say_alone(tmp_path):
    model = compact(language_model(), whole=True)
    export_decoder(model, tmp_path / "m.onnx")
    decoder = OnnxDecoder(tmp_path / "m.onnx")
    ids = np.array([[0, 0, 0, 5, 9, 12], [8, 7, 6, 5, 4, 3]])
    mask = (np.arange(6) >= np.array([[3], [0]])).astype(np.int64)
    found = decoder.session.run(None, {"input_ids": ids, "attention_mask": mask, **decoder.empty(2)})[0]
    alone = decoder.step(ids[:1, 3:], decoder.empty(1))[0]
    assert np.allclose(found[0, 3:], alone[0], atol=1e-5)


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, True), (4, False)])
def test_a_packed_table_and_the_head_tied_to_it_are_stored_once(bits, symmetric, tmp_path):
    model = language_model(tie_word_embeddings=True)
    weight = model.model.embed_tokens.weight.detach()
    stand_in = torch.nn.Linear(64, 280, bias=False)
    grid = fit_grid(weight, bits, 32, symmetric, "minmax", "whole")
    made = GroupQuantizedLinear.from_codes(stand_in, grid, quantise(weight, grid))
    model.model.embed_tokens = GroupQuantizedEmbedding.sharing(TableShape.of(model.model.embed_tokens), made)
    model.lm_head = made
    written = export_decoder(model, tmp_path / "m.onnx")
    assert written.share < 1e-5
    plain = export_decoder(language_model(tie_word_embeddings=True), tmp_path / "plain.onnx")
    assert plain.bytes - written.bytes > 280 * 64 * (4 - bits / 8) * 0.8


def test_what_the_graph_cannot_say_is_refused(tmp_path):
    out = tmp_path / "m.onnx"
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no decoding graph"):
        export_decoder(language_model("GPT2"), out)
    with pytest.raises(ConfigError, match="zeros=whole or symmetric=true"):
        export_decoder(compact(language_model()), out)
    rounding = compact(language_model(), symmetric=True)
    rounding.model.layers[1].mlp.up_proj.activations = "int8"
    with pytest.raises(ConfigError, match=r"layers.1.mlp.up_proj is a .* rounds its inputs.*or export with --accuracy"):
        export_decoder(rounding, out)
    with pytest.raises(ConfigError, match="'dynamic' change with the length"):
        export_decoder(language_model(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), out)
    with pytest.raises(ConfigError, match="groups of 40 inputs"):
        block_of(40, 160, "a")
    assert not out.exists()
