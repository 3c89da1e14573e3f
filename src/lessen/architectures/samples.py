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
    config, takes = model.config, inspect.signature(model.forward).parameters
    mark = getattr(config, "image_token_id", None)
    sees = getattr(getattr(model, "model", model), "get_image_features", None)
    shown = _shown(config, eye, rows, generator)
    if not isinstance(mark, int) or sees is None or shown is None:
        raise InputError(_refusal(model, "pictures inside of a text"))
    shown["pixel_values"] = shown["pixel_values"].to(model.dtype)
    one = {name: value[: len(value) // rows].to(model.device) for name, value in shown.items()}
    with torch.no_grad():
        tokens = len(sees(**one, return_dict=True).pooler_output[0])
    words = _tokens(text, rows, length, generator)
    special = [getattr(config, name) for name in dir(config) if name.endswith("_token_id")]
    special = [mark, *(token for token in special if isinstance(token, int))]
    plain = next(token for token in range(len(special) + 1) if token not in special)
    words = words.masked_fill(torch.isin(words, torch.tensor(special)), plain)
    ids = torch.cat([words[:, :1], words.new_full((rows, tokens), mark), words[:, 1:]], 1)
    wanted = torch.tensor([-1])  # whatever was left out before it, the last word is there
    kinds = {"mm_token_type_ids": (ids == mark).int()} if "mm_token_type_ids" in takes else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown, **kinds, "logits_to_keep": wanted}


def _shown(config: Any, eye: Any, rows: int, generator: torch.Generator) -> dict[str, Tensor] | None:
    """Return one picture for each of `rows` prompts in the form that the host's processor gives, None: not known."""
    channels = getattr(eye, "num_channels", getattr(eye, "in_channels", None))
    if not isinstance(channels, int):
        return None
    merge = getattr(eye, "spatial_merge_size", None)
    if merge is not None:  # Qwen-VL: patches one after another
        patches, values = (4 * merge) ** 2, channels * eye.temporal_patch_size * eye.patch_size**2
        grid = torch.tensor([[1, 4 * merge, 4 * merge]] * rows)
        return {"pixel_values": torch.randn(rows * patches, values, generator=generator), "image_grid_thw": grid}
    height, width = _pair(eye.image_size)
    size, tiles = (height, width), 1
    if hasattr(config, "image_grid_pinpoints"):
        size = _pair(config.image_grid_pinpoints[0])
        tiles += (size[0] // height) * (size[1] // width)
    pixels = torch.randn(rows, tiles, channels, height, width, generator=generator)
    if hasattr(config, "scale_factor"):
        return {"pixel_values": pixels}
    made = {"pixel_values": pixels if tiles > 1 else pixels[:, 0]}
    if tiles > 1 or hasattr(config, "spatial_merge_size"):
        made["image_sizes"] = torch.tensor([size] * rows)
    return made


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
