"""Tiny randomly initialised models of many families with one batch of inputs each; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

WIDTH, VOCABULARY = 32, 96
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
TEXT = COMMON | {"intermediate_size": 48, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHARED_KEYS = {"num_key_value_heads": 2}
PICTURE = COMMON | {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
OLD = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
BART = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_start_token_id": 1,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": VOCABULARY,
    "init_std": 0.2,
}
EAR = {
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}

DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT | SHARED_KEYS | IDS),
    "mistral": ("MistralForCausalLM", "MistralConfig", TEXT | SHARED_KEYS | IDS),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", TEXT | SHARED_KEYS | IDS),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", TEXT | SHARED_KEYS | IDS | {"head_dim": 16}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", TEXT | SHARED_KEYS | IDS | {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", TEXT | SHARED_KEYS | IDS | {"head_dim": 16}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", TEXT | SHARED_KEYS | IDS | {"head_dim": 16}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", TEXT | SHARED_KEYS | IDS),
    "phi": ("PhiForCausalLM", "PhiConfig", TEXT | IDS),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", OLD | {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM", "GPTBigCodeConfig",
        OLD | {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "multi_query": False},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT | IDS),
    "gptj": (
        "GPTJForCausalLM", "GPTJConfig",
        OLD | {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH, "init_std": 0.2, **IDS,
    }),
    "falcon": ("FalconForCausalLM", "FalconConfig", COMMON | OLD),
    "falcon-new": (
        "FalconForCausalLM", "FalconConfig", COMMON | OLD | {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", OLD | {"hidden_size": WIDTH, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptForCausalLM", "MptConfig", OLD | {"d_model": WIDTH, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", TEXT | SHARED_KEYS | IDS),
    "cohere": ("CohereForCausalLM", "CohereConfig", TEXT | SHARED_KEYS | IDS),
}  # fmt: skip
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", TEXT),
    "minilm": ("BertModel", "BertConfig", TEXT | {"num_hidden_layers": 3, "intermediate_size": 4 * WIDTH}),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {
        "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "initializer_range": 0.2,
    }),
    "roberta": ("RobertaModel", "RobertaConfig", TEXT),
    "mpnet": ("MPNetModel", "MPNetConfig", TEXT),
    "modernbert": ("ModernBertModel", "ModernBertConfig", TEXT | IDS | {"cls_token_id": 1, "sep_token_id": 2}),
    "vit": ("ViTForImageClassification", "ViTConfig", PICTURE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", PICTURE),
    "dinov2": ("Dinov2Model", "Dinov2Config", PICTURE),
    "dinov2-gated": ("Dinov2Model", "Dinov2Config", PICTURE | {"use_swiglu_ffn": True}),
    "dinov2-registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", PICTURE),
}  # fmt: skip
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPModel", "CLIPConfig", {
        "text_config": TEXT | IDS | {"projection_dim": 16}, "vision_config": PICTURE | {"projection_dim": 16},
        "projection_dim": 16, "initializer_factor": 8.0,
    }),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": TEXT | {"projection_size": WIDTH}, "vision_config": PICTURE}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", BART | EAR | IDS),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART | IDS | {"max_position_embeddings": 64}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5-gated": ("T5ForConditionalGeneration", "T5Config", T5 | {"feed_forward_proj": "gated-gelu"}),
    "llava": ("LlavaForConditionalGeneration", "LlavaConfig", {"image_token_index": VOCABULARY - 1}),
}  # fmt: skip
ALL = DECODERS | ENCODERS | OTHERS


def host(name: str, seed: int = 0, **changes: Any) -> Any:
    """One tiny model, float32, in eval mode; dropout does nothing. `changes` go into its configuration."""
    torch.manual_seed(seed)
    model_class, config_class, options = ALL[name]
    if name == "llava":
        options = options | {
            "vision_config": transformers.CLIPVisionConfig(**PICTURE),
            "text_config": transformers.LlamaConfig(**TEXT, **SHARED_KEYS),
        }
    config = getattr(transformers, config_class)(**options | changes)
    model = getattr(transformers, model_class)(config).eval()
    for module in model.modules():  # norms and biases that do something
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.uniform_(parameter, -0.2, 0.2)
    return model


def inputs(name: str, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Keyword arguments that the model of `host(name)` takes; texts are padded at the right."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(3, VOCABULARY - 1, (batch, 9), generator=draw)
    mask = torch.ones_like(words)
    mask[1:, -2:] = 0
    pictures = torch.randn(batch, 3, 32, 32, generator=draw)
    if name in ("clip", "siglip"):
        return {"input_ids": words, "pixel_values": pictures}
    if name == "llava":
        marks = torch.full((batch, 16), VOCABULARY - 1)
        return {"input_ids": torch.cat([words[:, :2], marks, words[:, 2:]], dim=1), "pixel_values": pictures}
    if name == "whisper":
        return {"input_features": torch.randn(batch, 8, 32, generator=draw), "decoder_input_ids": words[:, :4]}
    if name in ("bart", "t5", "t5-gated"):
        return {"input_ids": words, "attention_mask": mask, "decoder_input_ids": words[:, :4]}
    if name in ENCODERS and "image_size" in ENCODERS[name][2]:
        return {"pixel_values": pictures}
    return {"input_ids": words, "attention_mask": mask}


def answer(model: Any, given: dict[str, Tensor]) -> Tensor:
    """The first tensor that says what the model computed."""
    with torch.no_grad():
        output = model(**given)
    for key in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(output, key, None) is not None:
            return getattr(output, key)
    raise AssertionError(f"no tensor among {list(output)}")
