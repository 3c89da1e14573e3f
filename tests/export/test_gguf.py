"""GGUF: the bytes are our codes, read by the `gguf` package; llama.cpp's own reading is in `test_llama_cpp.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="the [hf] extra is not installed")

import gguf

from export_models import compact, on_grid
from lessen.errors import ConfigError, NonFiniteError, OutputError
from lessen.export.gguf import blocks
from lessen.export.gguf.hosts import swap
from lessen.export.gguf.write import export_gguf
from tiny_language import byte_level, language_model


def read(path):
    reader = gguf.GGUFReader(path)
    tensors = {one.name: (one.tensor_type.name, gguf.dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_blocks_hold_our_values_bit_for_bit(bits, symmetric):
    weight = on_grid(5, 96, bits, 32, symmetric)
    if bits > 5 and not symmetric:
        with pytest.raises(ConfigError, match="set symmetric=true"):
            blocks.pack(weight, "a")
        return
    packed = blocks.pack(weight, "a")
    kind = gguf.GGMLQuantizationType[packed.kind]
    assert packed.kind == ("Q8_0" if bits > 5 else f"Q{max(4, bits)}_{int(not symmetric)}")
    assert np.array_equal(gguf.dequantize(packed.data, kind), weight.values().numpy())


@pytest.mark.parametrize("group", [64, 96, 192])
def test_a_scale_of_many_inputs_stands_in_each_of_its_blocks(group):
    weight = on_grid(3, 160, 4, min(group, 160), False)
    packed = blocks.pack(weight, "a")
    found = gguf.dequantize(packed.data, gguf.GGMLQuantizationType[packed.kind])
    assert np.array_equal(found, weight.values().numpy())


def test_what_blocks_cannot_hold_is_named():
    with pytest.raises(ConfigError, match=r"rows of 40 inputs.*skip='a.b'"):
        blocks.pack(on_grid(2, 40, 4, 32, True), "a.b")
    with pytest.raises(ConfigError, match=r"groups of 40 inputs.*set group=32"):
        blocks.pack(on_grid(2, 160, 4, 40, True), "a.b")


def test_dense_tensors_take_the_type_that_holds_them():
    exact = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert blocks.plain(exact.half().float()).kind == "F16"
    assert blocks.plain(exact.bfloat16().float() * 2.0**-20).kind == "BF16"
    assert (blocks.plain(exact).kind, blocks.plain(exact).rounded) == ("F16", True)
    assert blocks.plain(exact + 1e6).kind == "F32"
    assert blocks.plain(exact[0]).kind == "F32"


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "GPT2"])
def test_every_tensor_of_a_family_has_its_place(family, tmp_path):
    changes = {
        "Gemma3": {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
        "Qwen3": {"head_dim": 16},
    }
    changes["Mistral"] = {"sliding_window": None}
    model, words = language_model(family, **changes.get(family, {})), byte_level()
    written = export_gguf(model, words, tmp_path / "m.gguf")
    fields, tensors = read(tmp_path / "m.gguf")
    assert written.bytes == (tmp_path / "m.gguf").stat().st_size
    assert fields["general.architecture"] == written.architecture
    assert sum(value.size for _, value in tensors.values()) == sum(one.numel() for one in model.parameters())
    assert fields["tokenizer.ggml.tokens"] == [words.convert_ids_to_tokens(number) for number in range(280)]


@pytest.mark.parametrize("scale_bits", [None, 4, 6])
@pytest.mark.parametrize("symmetric", [True, False])
def test_queries_and_keys_of_llama_are_laid_for_neighbours_and_codes_are_kept(symmetric, scale_bits, tmp_path):
    model = compact(language_model(), symmetric=symmetric, scale_bits=scale_bits)
    written = export_gguf(model, byte_level(), tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    form = "Q4_0" if symmetric else "Q4_1"
    assert written.kinds[form] == 14
    for index, block in enumerate(model.model.layers):
        for name, layer, heads in (("attn_q", block.self_attn.q_proj, 4), ("attn_k", block.self_attn.k_proj, 2)):
            kind, value = tensors[f"blk.{index}.{name}.weight"]
            assert kind == form
            assert np.array_equal(value, layer.dequantise()[swap(layer.out_features, heads)].numpy())
        assert np.array_equal(tensors[f"blk.{index}.ffn_down.weight"][1], block.mlp.down_proj.dequantise().numpy())
    assert swap(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_metadata_say_what_the_model_is(tmp_path):
    model = language_model(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    )
    words = byte_level()
    export_gguf(model, words, tmp_path / "m.gguf")
    fields, tensors = read(tmp_path / "m.gguf")
    expected = {
        "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 2, "llama.vocab_size": 280,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 5e4, "llama.rope.dimension_count": 16, "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": words.chat_template,
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    factors = tensors["rope_freqs.weight"][1]
    found = model.model.rotary_emb.inv_freq.numpy()
    assert np.allclose(5e4 ** (-np.arange(8) / 8) / factors, found, rtol=1e-6)


def test_an_unwritable_or_damaged_model_leaves_nothing(tmp_path):
    model, words = language_model(), byte_level()
    with pytest.raises(OutputError):
        export_gguf(model, words, tmp_path / "none" / "m.gguf")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layers.1.mlp.up_proj.weight holds NaN"):
        export_gguf(model, words, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_models_that_llama_cpp_would_misread_are_refused(tmp_path):
    out, words = tmp_path / "m.gguf", byte_level()
    with pytest.raises(ConfigError, match="up to 279, and the model has 270 rows"):
        export_gguf(language_model(vocab=270), words, out)
    with pytest.raises(ConfigError, match="of type phi cannot be written.*--to hf writes any family"):
        export_gguf(language_model("Phi"), words, out)
    with pytest.raises(ConfigError, match="looks back over 16 tokens"):
        export_gguf(language_model("Mistral", sliding_window=16), words, out)
    with pytest.raises(ConfigError, match="layer_types of this Gemma 3"):
        export_gguf(
            language_model("Gemma3", head_dim=16, query_pre_attn_scalar=16, layer_types=["full_attention"] * 2),
            words,
            out,
        )
    other = byte_level()
    from tokenizers import pre_tokenizers

    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ConfigError, match=r"cuts text in a way \(Punctuation, ByteLevel\)"):
        export_gguf(language_model(), other, out)
    assert not list(tmp_path.iterdir())


def test_rows_beyond_the_tokenizer_are_unused_tokens(tmp_path):
    export_gguf(language_model(vocab=290), byte_level(), tmp_path / "m.gguf")
    fields, _ = read(tmp_path / "m.gguf")
    assert len(fields["tokenizer.ggml.tokens"]) == 290
    assert fields["tokenizer.ggml.token_type"][280:] == [5] * 10
