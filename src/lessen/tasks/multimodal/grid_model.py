"""The model of the task `vision-language-grid`: Hugging Face's LLaVA, 144 visual tokens a picture, built from a config.

picture [3,72,72] -> tower: 12 x 12 patches, 2 blocks of width 64 -> projector -> 144 tokens of the decoder
<s> picture words ?  -> decoder: 6 layers of width 64, rotary positions -> the one word that answers
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.scenes import CELL, SIDE
from lessen.errors import MissingExtraError
from lessen.tasks.multimodal.words import IMAGE, PAD, START, WORDS, encode

TOKENS = SIDE * SIDE
"""Visual tokens of a picture."""
WIDTH, LAYERS = 64, 6


def build_grid_model() -> nn.Module:
    """Return the untrained model, drawn from torch's global generator.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    except ImportError as error:
        raise MissingExtraError("hf", "transformers", "the task vision-language-grid") from error
    tower = CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, projection_dim=64,
        image_size=SIDE * CELL, patch_size=CELL,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=2 * WIDTH, vocab_size=len(WORDS), max_position_embeddings=1024, pad_token_id=PAD,
        bos_token_id=START, eos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    config.pad_token_id = PAD
    return LlavaForConditionalGeneration(config)


def prefix(frames: int, tokens: int = TOKENS) -> list[int]:
    """Return the tokens before a question: one picture, or the pictures of a film with their numbers."""
    if frames == 1:
        return [START, *[IMAGE] * tokens]
    return [START, *(one for frame in range(frames) for one in (*encode(f"frame {frame + 1}"), *[IMAGE] * tokens))]


def prompts(questions: Sequence[str], frames: int, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Return input_ids and attention_mask [B,N] of questions about as many pictures or films, padded on the left."""
    rows = [prefix(frames, tokens) + encode(question) for question in questions]
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}
