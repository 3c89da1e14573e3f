"""llama.cpp opens our GGUF files and says what we say, within its arithmetic (16 bit and 8 bit activations)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="the [hf] extra is not installed")

from export_models import compact
from lessen.export.gguf.write import export_gguf
from llama_runtime import LlamaCpp, missing
from tiny_language import byte_level, language_model

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

CHANGES = {
    "Gemma3": {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 6, "sliding_window": 8},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": None},
    "Scaled": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "Linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
}  # fmt: skip
TEXT = "the cat sat on a mat; 345 dogs don't"


def compared(model, path, share: float) -> None:
    words = byte_level()
    export_gguf(model, words, path)
    theirs = LlamaCpp(path)
    ids = words(TEXT)["input_ids"]
    assert theirs.ids(TEXT) == ids
    found = theirs.logits(ids)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0].float().numpy()
    apart, scale = np.abs(found - wanted).max(), np.abs(wanted).max()
    assert apart < share * scale, (apart, scale)
    first, second = np.sort(wanted, axis=1)[:, [-1, -2]].T
    clear = first - second > 2 * apart
    assert clear.sum() > len(ids) // 3
    assert (found.argmax(1) == wanted.argmax(1))[clear].all()


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "GPT2", "Scaled", "Linear"])
def test_dense_models_say_the_same(family, tmp_path):
    model = language_model("Llama" if family in ("Scaled", "Linear") else family, **CHANGES.get(family, {}))
    compared(model, tmp_path / "m.gguf", 0.01)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (5, True), (5, False), (8, True)])
def test_packed_models_say_the_same(bits, symmetric, tmp_path):
    compared(compact(language_model(), bits, 32, symmetric), tmp_path / "m.gguf", 0.08)
