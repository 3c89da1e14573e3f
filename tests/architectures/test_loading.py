from __future__ import annotations

import pytest
import torch

from tiny_models import llama

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.architectures.loading import SMOLLM2, convert_gguf
from lessen.data.cache import cache_folder
from lessen.decoding import load_model
from lessen.errors import ConfigError


@pytest.fixture
def folder(tmp_path, tokenizer):
    llama().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_local_folder(folder, name, dtype):
    model, tokenizer = load_model(str(folder), name)
    assert model.dtype == dtype
    assert not model.training
    assert tokenizer.decode([2, 3, 4]) == "abc"
    assert torch.equal(model.lm_head.weight, llama().lm_head.weight.to(dtype))


def test_what_is_not_there_or_not_a_model_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_model(str(tmp_path / "nothing" / "here"))
    with pytest.raises(ConfigError, match="cannot load a causal language model"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="float8"):
        load_model(str(folder), "float8")
    with pytest.raises(ConfigError, match="does not exist"):
        load_model(str(tmp_path / "model.gguf"))


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(ConfigError, match="cannot read"):
        convert_gguf(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_is_dequantised_once_and_reused(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))
    model = llama(vocab=40, tie_word_embeddings=False)
    path = tmp_path / "tiny.gguf"
    write_gguf(gguf, model, path)
    loaded, tokenizer = load_model(str(path))
    assert tokenizer.vocab_size >= 40
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert (loaded(ids).logits - model(ids).logits).abs().max() < 1e-4
    monkeypatch.setattr("lessen.architectures.loading.convert_gguf", lambda *_: pytest.fail("converted a second time"))
    load_model(str(path))


def write_gguf(gguf, model, path):
    """A float32 GGUF of a tiny Llama with a byte-level vocabulary of forty letters."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    heads, kv, width = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(40)
    letters = [*"01abcdefghijklmnopqrstuvwxyz23456789.,;", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * 40)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for name, short in names.items():
            tensor = state[f"model.layers.{layer}.{name}.weight"]
            if short in ("attn_q", "attn_k"):  # GGUF stores rotary pairs interleaved
                count = heads if short == "attn_q" else kv
                tensor = tensor.view(count, 2, -1, width).transpose(1, 2).reshape(tensor.shape).contiguous()
            writer.add_tensor(f"blk.{layer}.{short}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_the_built_in_model_answers():
    if not (cache_folder() / "models" / SMOLLM2 / "config.json").exists():
        pytest.skip("SmolLM2 is not in the cache; run: lessen generate smollm2-135m-instruct -p hello")
    from lessen.decoding import Decoder
    from lessen.decoding.chat import Chat

    model, tokenizer = load_model(SMOLLM2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    chat = Chat(Decoder(model, tokenizer))
    answer, _ = chat.ask("What is the capital of France?", compared=True, max_new_tokens=24)
    assert "Paris" in answer
    assert chat.decoder.report.comparison.identical == 1
