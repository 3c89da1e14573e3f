"""transformers with the package compressed-tensors reads our packed folders: the same logits, and our words are its own.

The package is no dependency: `pip install --no-deps compressed-tensors==0.20.1 loguru` runs these.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")
pytest.importorskip("compressed_tensors", reason="pip install --no-deps compressed-tensors==0.20.1 loguru runs these")

from export_models import compact, on_grid
from lessen.export.compressed import pack_layer, pack_words
from lessen.export.hf import export_hf
from tiny_language import byte_level, language_model


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_the_package(bits):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 2**bits, (6, 100), generator=torch.Generator().manual_seed(0))
    theirs = pack_to_int32((codes - 2 ** (bits - 1)).to(torch.int8), bits)
    assert torch.equal(pack_words(codes, bits), theirs)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_package_unpacks_our_values(symmetric):
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weight = on_grid(24, 96, 4, 32, symmetric, whole=True)
    form, tensors = pack_layer(weight, "a")
    described = form.described(["Linear"])["weights"]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**described))
    assert torch.equal(PackedQuantizationCompressor.decompress(tensors, scheme)["weight"], weight.values())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_gives_our_logits(bits, tied, tmp_path):
    import transformers

    model = compact(language_model(tie_word_embeddings=tied), bits, symmetric=True)
    export_hf(model, byte_level(), tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
