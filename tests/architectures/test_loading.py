from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_models import llama

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from host_models import answer, host, inputs
from lessen.architectures.folder import read_folder, tensor_names
from lessen.architectures.loading import SMOLLM2, _made_once, build_host, convert_gguf, load_host
from lessen.data.cache import cache_folder
from lessen.decoding import load_model
from lessen.errors import ConfigError, DataError, OutputError
from lessen.files import atomic_folder
from tiny_language import host_folder


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


def test_what_is_not_there_or_not_a_model_is_refused_by_name(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no model folder"):
        load_model(str(tmp_path / "nothing" / "here"))
    with pytest.raises(ConfigError, match="did you mean .*tiny"):
        load_model(str(tmp_path / "tiiny"))
    with pytest.raises(ConfigError, match=r"has no config.json \(it holds tiny\)"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="float8"):
        load_model(str(folder), "float8")
    with pytest.raises(ConfigError, match="does not exist"):
        load_model(str(tmp_path / "model.gguf"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no model folder tiny/tokens"):
        load_model("tiny/tokens")


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "bert", "vit", "dinov2-registers", "clip", "siglip", "whisper", "t5"]
)
def test_any_architecture_is_loaded_by_the_class_that_its_configuration_names(tmp_path, name):
    model, given = host(name), inputs(name)
    model.save_pretrained(tmp_path / "host", max_shard_size="30KB")
    loaded = load_host(str(tmp_path / "host"))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(answer(loaded, given), answer(model, given))
    assert type(build_host(str(tmp_path / "host"))) is type(model)


def test_a_part_of_a_model_is_loaded_too(tmp_path):
    host("whisper").model.encoder.save_pretrained(tmp_path / "ear")
    assert type(load_host(str(tmp_path / "ear"))).__name__ == "WhisperEncoder"


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    host("gpt2").save_pretrained(tmp_path / "host")
    assert "lm_head.weight" not in tensor_names(tmp_path / "host" / "model.safetensors")
    loaded = load_host(str(tmp_path / "host"))
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_dtypes_are_those_of_the_file_unless_asked_for(tmp_path):
    host("llama").bfloat16().save_pretrained(tmp_path / "host")
    assert load_host(str(tmp_path / "host")).dtype == torch.bfloat16
    assert load_host(str(tmp_path / "host"), "float32").dtype == torch.float32


def test_weights_stay_mapped_to_the_file(tmp_path):
    """A mapped tensor changes with a write to its file's pages; what was copied does not."""
    host("llama").save_pretrained(tmp_path / "host")
    path = tmp_path / "host" / "model.safetensors"
    loaded = load_host(str(tmp_path / "host"))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert str(path) in maps.read_text()
    del loaded


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_compiled_and_parallel_models_are_read(tmp_path, prefix):
    model = host("llama")
    model.save_pretrained(tmp_path / "host")
    path = tmp_path / "host" / "model.safetensors"
    save_file({f"{prefix}{name}": tensor.clone() for name, tensor in model.state_dict().items()}, path)
    loaded = load_host(str(tmp_path / "host"))
    assert torch.equal(answer(loaded, inputs("llama")), answer(model, inputs("llama")))


def test_a_folder_is_identified_by_its_content_and_a_snapshot_by_its_commit(tmp_path):
    host("llama").save_pretrained(tmp_path / "one")
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tmp_path / "one", tmp_path / "models--a--b" / "snapshots" / commit)
    one, two = read_folder(tmp_path / "one"), read_folder(tmp_path / "models--a--b" / "snapshots" / commit)
    assert one.identity()["architecture"] == "LlamaForCausalLM"
    assert (one.revision, two.revision) == (None, commit)
    assert one.digest == two.digest
    raw = (tmp_path / "one" / "model.safetensors").read_bytes()
    (tmp_path / "one" / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert read_folder(tmp_path / "one").digest != two.digest


def rewrite(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path)


def drop_norm(folder):
    host("llama").save_pretrained(folder)
    rewrite(folder / "model.safetensors", lambda state: state.pop("model.norm.weight"))


def reshape_norm(folder):
    host("llama").save_pretrained(folder)
    rewrite(folder / "model.safetensors", lambda state: state.update({"model.norm.weight": torch.zeros(3)}))


def only_pickle(folder):
    host("llama").save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_weights(folder):
    host("llama").save_pretrained(folder)
    (folder / "model.safetensors").unlink()


def change_config(**changes):
    def change(folder):
        host("llama").save_pretrained(folder)
        path = folder / "config.json"
        path.write_text(
            json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None})
        )

    return change


def junk_config(folder):
    host("llama").save_pretrained(folder)
    (folder / "config.json").write_bytes(b"version https://git-lfs")


def junk_weights(folder):
    host("llama").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\x00\xff" * 500)


def cut_weights(folder):
    host("llama").save_pretrained(folder)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-100])


def lose_shard(folder):
    host("llama").save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()


def cut_shard(folder):
    host("llama").save_pretrained(folder, max_shard_size="20KB")
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])


def other_index(folder):
    host("llama").save_pretrained(folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"]["not.there"] = index["weight_map"][first]
    path.write_text(json.dumps(index))


def escaping_index(folder):
    host("llama").save_pretrained(folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"model-00001', '"../model-00001'))


BROKEN = {
    "missing tensor": (drop_norm, DataError, "lacks the tensor 'model.norm.weight' that LlamaForCausalLM needs"),
    "other shape": (reshape_norm, DataError, r"'model.norm.weight' has shape \[3\], LlamaForCausalLM needs \[32\]"),
    "pickle": (only_pickle, ConfigError, "the weights are a pickle"),
    "no weights": (without_weights, ConfigError, "no weights: neither model.safetensors nor"),
    "junk configuration": (junk_config, DataError, "config.json is not readable as JSON"),
    "junk weights": (junk_weights, DataError, "is cut short or no safetensors file"),
    "cut weights": (cut_weights, DataError, "is cut short or no safetensors file"),
    "lost shard": (lose_shard, DataError, "shard model-00002-of-.* is missing; the index needs it for"),
    "cut shard": (cut_shard, DataError, "model-00002-of-.* is cut short"),
    "index of other shards": (other_index, DataError, "holds 'not.there', and it does not"),
    "index that escapes": (escaping_index, DataError, "a file outside of the folder"),
    "no class": (change_config(architectures=None), ConfigError, 'names no class under "architectures"'),
    "foreign class": (
        change_config(architectures=["LlamaForCasualLM"]),
        ConfigError,
        "did you mean 'LlamaForCausalLM'",
    ),
    "no family": (change_config(model_type=None), ConfigError, "names no model_type"),
    "unknown family": (change_config(model_type="lama"), ConfigError, "cannot be used"),
    "silly sizes": (change_config(num_attention_heads=5), (ConfigError, DataError), "."),
    "quantised": (
        change_config(quantization_config={"quant_method": "gptq"}),
        ConfigError,
        "weights quantised by gptq",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_folder_is_one_line_and_never_a_random_layer(tmp_path, what):
    damage, kind, said = BROKEN[what]
    damage(tmp_path / "host")
    with pytest.raises(kind, match=said) as caught:
        load_host(str(tmp_path / "host"))
    assert str(tmp_path / "host") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_language_model_needs_a_head_and_a_tokenizer(folder, tmp_path):
    host("bert").save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="is a BertModel, not a causal language model"):
        load_model(str(tmp_path / "bert"))
    host("llama").save_pretrained(tmp_path / "silent")
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        load_model(str(tmp_path / "silent"))


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(DataError, match="GGUF of version 0"):
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
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
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


def test_a_model_that_another_process_made_meanwhile_is_taken(tmp_path: Path) -> None:
    def beaten(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with atomic_folder(folder):
            pass

    folder = tmp_path / "model"
    assert _made_once(folder, beaten) == folder
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "other").touch()

    def blocked(folder: Path) -> None:
        with atomic_folder(folder):
            pass

    with pytest.raises(OutputError, match="already exists and is not empty"):
        _made_once(tmp_path / "half", blocked)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["Llama", "Gemma3", "GPT2"])
def test_an_architecture_without_weights_is_that_of_a_loaded_model(tmp_path, family, dtype):
    """A cast of the whole would round the rotary frequencies, which no file holds: an artifact would answer otherwise."""
    host_folder(tmp_path / "host", family)
    loaded, built = load_host(str(tmp_path / "host"), dtype), build_host(str(tmp_path / "host"), dtype)
    assert torch.get_default_dtype() == torch.float32
    theirs, ours = dict(loaded.named_buffers()), dict(built.named_buffers())
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) and theirs[name].dtype == ours[name].dtype for name in ours)
    assert {name: one.dtype for name, one in loaded.named_parameters()} == {
        name: one.dtype for name, one in built.named_parameters()
    }
