"""A GGUF file of a Llama shape with random weights, written block by block: what llama.cpp is timed on without a model.

Linear layers are Q4_0, the embedding and the head Q8_0, as `benchmarks.language.bandwidth` has them on our side (4 and
8 bits). The file has no vocabulary; tokens are numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LAYER = {
    "attn_q": ("hidden", "hidden"), "attn_k": ("keys", "hidden"), "attn_v": ("keys", "hidden"),
    "attn_output": ("hidden", "hidden"), "ffn_gate": ("inner", "hidden"), "ffn_up": ("inner", "hidden"),
    "ffn_down": ("hidden", "inner"),
}  # fmt: skip


def write(path: Path, config: Any) -> None:
    """Write the file for a configuration of transformers' Llama."""
    import gguf

    writer, draw = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    hidden, heads, kept = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    sizes = {"hidden": hidden, "keys": hidden // heads * kept, "inner": config.intermediate_size}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kept)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    kinds = gguf.GGMLQuantizationType

    def add(name: str, rows: int, columns: int, kind: Any) -> None:
        count, size = rows * columns // 32, 18 if kind == kinds.Q4_0 else 34
        blocks = draw.integers(0, 256, (count, size), dtype=np.uint8)
        blocks[:, :2] = np.array([0.02 / (8 if size == 18 else 127)], np.float16).view(np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=kind)

    for name in ("token_embd", "output"):
        add(name, config.vocab_size, hidden, kinds.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(config.num_hidden_layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
        for name, (rows, columns) in LAYER.items():
            add(f"blk.{layer}.{name}", sizes[rows], sizes[columns], kinds.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
