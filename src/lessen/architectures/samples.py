"""Made-up inputs of a host model, of the shapes that its configuration says: random tokens, noise for the rest.

They show that two models compute the same, and nothing about quality.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.context import CONTEXT_NAMES
from lessen.errors import InputError

ANY_SIZE = 64
"""Side of the pictures of a network of convolutions, whose configuration names none: it takes any."""


def sample_inputs(model: Any, rows: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return keyword arguments for `rows` inputs of a Hugging Face model.

    Args:
        length: tokens of a text, where the model reads texts; shorter where its positions end earlier.

    Raises:
        InputError: the model reads something else, or pictures that are part of its text; names what it reads.
    """
    config = model.config
    takes = inspect.signature(model.forward).parameters
    text, eye = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    made: dict[str, Tensor] = {}
    if "pixel_values" in takes and "input_ids" in takes and model.get_output_embeddings() is not None:
        return _pictures_in_text(model, text, eye, rows, length, generator)
    if "input_ids" in takes and isinstance(getattr(text, "vocab_size", None), int):
        made["input_ids"] = _tokens(text, rows, length, generator)
    if "pixel_values" in takes and isinstance(getattr(eye, "num_channels", None), int):
        height, width = _pair(getattr(eye, "image_size", ANY_SIZE))
        made["pixel_values"] = torch.randn(rows, int(eye.num_channels), height, width, generator=generator)
    if "input_features" in takes and hasattr(config, "num_mel_bins"):
        frames = 2 * int(config.max_source_positions)  # the second convolution halves them
        made["input_features"] = torch.randn(rows, int(config.num_mel_bins), frames, generator=generator)
    if "input_values" in takes and not made:
        made["input_values"] = torch.randn(rows, 16_000, generator=generator)
    if not made:
        raise InputError(_refusal(model, getattr(model, "main_input_name", "inputs of an unknown kind")))
    if "decoder_input_ids" in takes and getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = _tokens(config, rows, min(8, length), generator)
    dtype = model.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def _pictures_in_text(
    model: Any, text: Any, eye: Any, rows: int, length: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return prompts of one picture each behind the first word, of which the last word's logits are wanted.

    Raises:
        InputError: the host takes pictures in another form than [rows, channels, side, side], or has no token for them.
    """
    config = model.config
    mark = getattr(config, "image_token_id", None)
    sees = getattr(getattr(model, "model", model), "get_image_features", None)
    odd = (
        hasattr(config, "image_grid_pinpoints") or hasattr(eye, "spatial_merge_size") or hasattr(config, "scale_factor")
    )
    if not isinstance(mark, int) or not isinstance(getattr(eye, "num_channels", None), int) or sees is None or odd:
        raise InputError(_refusal(model, "pictures inside of a text"))
    height, width = _pair(eye.image_size)
    pixels = torch.randn(rows, int(eye.num_channels), height, width, generator=generator).to(model.dtype)
    with torch.no_grad():
        tokens = len(sees(pixel_values=pixels[:1].to(model.device), return_dict=True).pooler_output[0])
    words = _tokens(text, rows, length, generator)
    words = words.masked_fill(words == mark, 0 if mark else 1)
    ids = torch.cat([words[:, :1], words.new_full((rows, tokens), mark), words[:, 1:]], 1)
    wanted = torch.tensor([-1])  # whatever was left out before it, the last word is there
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "logits_to_keep": wanted}


def _refusal(model: Any, what: str) -> str:
    return (
        f"inputs of {type(model).__name__} cannot be made up: it reads {what}; judge it by a task of your own, "
        "--task FILE.py:NAME"
    )


def _tokens(config: Any, rows: int, length: int, generator: torch.Generator) -> Tensor:
    limits = [getattr(config, name) for name in CONTEXT_NAMES if isinstance(getattr(config, name, None), int)]
    # two fewer than there are: some families number positions from behind their padding
    size = max(1, min([length, *(limit - 2 for limit in limits)]))
    return torch.randint(0, int(config.vocab_size), (rows, size), generator=generator)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
