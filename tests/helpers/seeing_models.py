"""Tiny randomly initialised language models that see pictures, with batches of prompts; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

VOCABULARY, PLACEHOLDER, PAD = 96, 95, 0
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 94,
    "initializer_range": 0.3,
}  # fmt: skip
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32}
NAMES = ("llava", "onevision", "smolvlm", "qwen2-vl", "paligemma")
TOKENS = {"llava": 16, "onevision": 36, "smolvlm": 4, "qwen2-vl": 16, "paligemma": 16, "internvl": 4, "mistral": 4}
"""Visual tokens of one picture."""


def seeing(name: str, seed: int = 0, **text: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {"llava": _llava, "onevision": _onevision, "smolvlm": _smolvlm, "qwen2-vl": _qwen, "paligemma": _paligemma,
                "internvl": _internvl, "mistral": _mistral}  # fmt: skip
        return made[name](text).eval()


def _llava(text: dict[str, Any]) -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, patch_size=8, initializer_range=0.2),
        text_config=transformers.LlamaConfig(**TEXT | text),
        image_token_index=PLACEHOLDER,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _onevision(text: dict[str, Any]) -> Any:
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**TOWER, patch_size=8),
        text_config=transformers.Qwen2Config(**TEXT | text),
        image_token_index=PLACEHOLDER,
        video_token_index=93,
        image_grid_pinpoints=[[32, 32]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def _smolvlm(text: dict[str, Any]) -> Any:
    config = transformers.SmolVLMConfig(
        vision_config=TOWER | {"patch_size": 8},
        text_config=transformers.LlamaConfig(**TEXT | text),
        image_token_id=PLACEHOLDER,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def _qwen(text: dict[str, Any]) -> Any:
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}} | text,
        image_token_id=PLACEHOLDER, video_token_id=93, vision_start_token_id=92, vision_end_token_id=91,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


def _paligemma(text: dict[str, Any]) -> Any:
    """All of a prompt sees all of it: picture and words."""
    config = transformers.PaliGemmaConfig(
        vision_config=TOWER | {"patch_size": 8, "projection_dim": 32},
        text_config=TEXT | {"model_type": "gemma", "head_dim": 8} | text,
        image_token_index=PLACEHOLDER,
        projection_dim=32,
        pad_token_id=PAD,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def _internvl(text: dict[str, Any]) -> Any:
    """The projector takes 2 x 2 patches for a token."""
    config = transformers.InternVLConfig(
        vision_config=TOWER | {"image_size": [32, 32], "patch_size": [8, 8]},
        text_config=transformers.Qwen2Config(**TEXT | text),
        image_token_id=PLACEHOLDER,
        downsample_ratio=0.5,
    )
    return transformers.InternVLForConditionalGeneration(config)


def _mistral(text: dict[str, Any]) -> Any:
    """The projector takes 2 x 2 patches for a token, and pictures say their size."""
    config = transformers.Mistral3Config(
        vision_config=transformers.PixtralVisionConfig(**TOWER, patch_size=8, head_dim=8),
        text_config=transformers.MistralConfig(**TEXT | {"head_dim": 8} | text),
        image_token_index=PLACEHOLDER,
        spatial_merge_size=2,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def prompts(name: str, pictures: tuple[int, ...] = (1, 2, 0), seed: int = 1) -> dict[str, Tensor]:
    """A left-padded batch; prompt i holds pictures[i] pictures and its own number of words."""
    chance = torch.Generator().manual_seed(seed)
    lines = []
    for row, count in enumerate(pictures):
        words = torch.randint(2, 90, (4 + 3 * row,), generator=chance).tolist()
        line = words[:2]
        for _ in range(count):
            line += [92, *[PLACEHOLDER] * TOKENS[name], 91]
        lines.append(line + words[2:])
    longest = max(map(len, lines))
    ids = torch.tensor([[PAD] * (longest - len(line)) + line for line in lines])
    mask = torch.tensor([[0] * (longest - len(line)) + [1] * len(line) for line in lines])
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | picture_inputs(name, sum(pictures), chance, pictures) | _types(name, ids)


def picture_inputs(name: str, total: int, chance: torch.Generator, pictures: tuple[int, ...]) -> dict[str, Tensor]:
    if not total:
        return {}
    if name == "qwen2-vl":
        grid = torch.tensor([[1, 8, 8]] * total)
        return {"pixel_values": torch.randn(64 * total, 3 * 2 * 16, generator=chance), "image_grid_thw": grid}
    pixels = torch.randn(total, 3, 32, 32, generator=chance)
    if name == "smolvlm":
        most = max(pictures)
        padded, rest = torch.zeros(len(pictures), most, 3, 32, 32), list(pixels)
        for row, count in enumerate(pictures):
            for i in range(count):
                padded[row, i] = rest.pop(0)
        return {"pixel_values": padded}
    if name == "onevision":  # the whole picture, then one tile of 16 tokens with 4 line breaks
        tiles = torch.randn(total, 2, 3, 32, 32, generator=chance)
        return {"pixel_values": tiles, "image_sizes": torch.tensor([[32, 32]] * total)}
    return {"pixel_values": pixels} | ({"image_sizes": torch.tensor([[32, 32]] * total)} if name == "mistral" else {})


def _types(name: str, ids: Tensor) -> dict[str, Tensor]:
    if name == "paligemma":
        return {"token_type_ids": torch.zeros_like(ids)}
    return {"mm_token_type_ids": (ids == PLACEHOLDER).int()} if name == "qwen2-vl" else {}
