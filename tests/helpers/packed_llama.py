"""Small packed models of Llama's shape, and texts for them."""

import pytest
import torch

from lessen.method import Context
from lessen.methods.weights.rtn import RTN

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 120, "max_position_embeddings": 2048,
}  # fmt: skip


class Named:
    name = "none"


def packed(kind="Llama", bits=4, activations="int8", **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **more})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4)
    method = RTN(bits=bits, group=32, activations=activations, min_weights=1)
    return method.apply(model, Named(), Context())


def tokens(count):
    return [(7 * step + step * step // 5 + 1) % 120 for step in range(count)]


def near(found, expected):
    return float((found - expected).abs().max()) <= 0.03 * float(expected.abs().max())
