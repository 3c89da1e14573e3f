"""Folders for transformers: dense ones give our logits; packed ones hold our codes, unpacked here by hand."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from export_models import compact, on_grid
from lessen.architectures.loading import load_host
from lessen.errors import ConfigError, NonFiniteError, OutputError
from lessen.export.compressed import pack_layer, pack_words, unpack_layer, unpack_words
from lessen.export.hf import export_hf
from tiny_language import byte_level, language_model


def slow_words(codes: list[int], bits: int) -> list[int]:
    """One long number, low bits first, cut into signed words."""
    whole = sum(code << (place * bits) for place, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    words = [(whole >> (32 * number)) & 0xFFFFFFFF for number in range(count)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_words_are_one_long_number(bits, count):
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(count))
    words = pack_words(codes, bits)
    assert words.tolist() == [slow_words(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack_words(words, bits, count), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (96, 64), (96, 96)])
def test_a_layer_keeps_its_values(bits, inputs, group):
    for weight in (on_grid(5, inputs, bits, group, True), on_grid(5, inputs, bits, group, False, whole=True)):
        form, tensors = pack_layer(weight, "a")
        assert form.bits == (4 if bits <= 4 else 8)
        assert torch.equal(unpack_layer(form, tensors), weight.values())


def test_minimums_without_zero_points_are_refused():
    with pytest.raises(ConfigError, match=r"a.b holds 4 bit codes with minimums.*zeros=whole or symmetric=true"):
        pack_layer(on_grid(5, 64, 4, 32, False), "a.b")
    with pytest.raises(ConfigError, match="compress with symmetric=true, or export with --dense"):
        pack_layer(on_grid(5, 64, 4, 32, False, scale_bits=6), "a.b")


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma3"])
def test_a_dense_folder_gives_our_logits(family, tmp_path):
    changes = {"head_dim": 16, "query_pre_attn_scalar": 16} if family == "Gemma3" else {}
    model = language_model(family, **changes)
    model = compact(model, scale_bits=6) if family != "GPT2" else model
    written = export_hf(model, byte_level(), tmp_path / "out", dense=True)
    ids = torch.arange(3, 20)[None]
    assert written.packed == 0
    with torch.no_grad():
        found = load_host(str(tmp_path / "out"))(input_ids=ids).logits
        torch.testing.assert_close(found, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)  # sums in another order
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in again
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_type_that_rounds_is_said(tmp_path):
    model = language_model()
    written = export_hf(model, None, tmp_path / "out", dense=True, dtype="bfloat16")
    assert "model.layers.0.mlp.up_proj.weight" in written.rounded
    assert load_host(str(tmp_path / "out")).dtype == torch.bfloat16


@pytest.mark.parametrize(("symmetric", "scale_bits"), [(True, None), (False, None), (True, 4), (True, 6)])
def test_a_packed_folder_holds_our_codes(symmetric, scale_bits, tmp_path):
    model = compact(language_model(), symmetric=symmetric, whole=scale_bits is None, scale_bits=scale_bits)
    written = export_hf(model, byte_level(), tmp_path / "out")
    assert written.packed == 14
    state = load_file(tmp_path / "out" / "model.safetensors")
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    weights = described["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 32, symmetric)
    assert described["ignore"] == ["lm_head"]
    for path, layer in model.named_modules():
        if path.endswith("proj"):
            held = {name.rpartition(".")[2]: value for name, value in state.items() if name.startswith(f"{path}.")}
            form, _ = pack_layer(layer_codes(layer), path)
            assert torch.equal(unpack_layer(form, held), layer.dequantise())
            assert held["weight_scale"].dtype == torch.float32
            assert f"{path}.weight" not in state


def layer_codes(layer):
    from lessen.export.codes import coded

    return coded(layer)


@pytest.mark.parametrize("library", ["safetensors", "tokenizers"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_disk_that_fills_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, dense, library):
    """Libraries in Rust say it in exceptions of their own."""
    words, full = byte_level(), "I/O error: No space left on device (os error 28)"
    kind = SafetensorError if library == "safetensors" else Exception

    def fails(*_, **__):
        raise kind(full)

    if library == "safetensors":
        monkeypatch.setattr("safetensors.torch.serialize_file", fails)
    else:
        monkeypatch.setattr(type(words), "save_pretrained", fails)
    with pytest.raises(OutputError, match=r"cannot write .*out: No space left on device; free space"):
        export_hf(compact(language_model(), symmetric=True), words, tmp_path / "out", dense=dense)
    assert not list(tmp_path.iterdir())


def test_what_a_folder_cannot_hold_leaves_nothing(tmp_path):
    model = compact(language_model())
    with pytest.raises(ConfigError, match="zeros=whole or symmetric=true, or export with --dense"):
        export_hf(model, byte_level(), tmp_path / "out")
    with pytest.raises(ConfigError, match="exact in float32 only"):
        export_hf(compact(language_model(), symmetric=True), None, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(ConfigError, match="up to 279, and the model has 270 rows"):
        export_hf(language_model(vocab=270), byte_level(), tmp_path / "out")
    with pytest.raises(ConfigError, match="no Hugging Face model"):
        export_hf(torch.nn.Linear(2, 2), None, tmp_path / "out")
    (tmp_path / "full").write_text("here")
    with pytest.raises(OutputError):
        export_hf(language_model(), None, tmp_path / "full" / "out", dense=True)
    model = language_model()
    with torch.no_grad():
        model.lm_head.weight[3, 5] = float("inf")
    with pytest.raises(NonFiniteError, match=r"lm_head.weight holds NaN or infinity"):
        export_hf(model, None, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["full"]
