"""Which layers of a language model cache keys and values, and how far each of them sees."""

from __future__ import annotations

from typing import Any

from torch import nn

from lessen.architectures.loading import hugging_face
from lessen.errors import InputError

_FULL, _SLIDING = "DynamicLayer", "DynamicSlidingWindowLayer"


def windows_of(model: nn.Module) -> list[int | None]:
    """Return, for each layer, the tokens that a query sees, its own included; None where it sees all.

    Raises:
        InputError: no Hugging Face decoder, or one whose cache is not keys and values for each token; it is named.
    """
    name, transformers = type(model).__name__, hugging_face()
    if not isinstance(model, transformers.PreTrainedModel) or not model.can_generate():
        raise InputError(f"{name} is no Hugging Face language model that can generate; its cache is not known")
    if model.config.is_encoder_decoder:
        raise InputError(f"{name} is an encoder-decoder, which has two caches; only decoders are known")
    try:
        layers: list[Any] = transformers.DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    except Exception as error:  # whatever the library makes of a configuration
        raise InputError(f"the cache of {name} is not known: {type(error).__name__}: {error}") from error
    unknown = sorted({type(layer).__name__ for layer in layers} - {_FULL, _SLIDING})
    if getattr(model, "_is_stateful", False) or unknown or not layers:
        kind = ", ".join(unknown) or "a state"
        raise InputError(f"{name} caches {kind}, not keys and values for each token; its cache is not known")
    return [int(layer.sliding_window) if type(layer).__name__ == _SLIDING else None for layer in layers]
