"""Sentences as vectors: tokens in, one vector a sentence out, by the pooling that the encoder was trained with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.architectures.loading import build_host, host_folder, load_host, load_tokenizer
from lessen.errors import ConfigError
from lessen.log import SILENT, Log

Pooling = Literal["mean", "cls", "last"]
_SAID = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
_UNKNOWN = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


class SentenceEncoder:
    """A Hugging Face encoder of a folder with its tokenizer and pooling.

    Args:
        model: a folder, or `minilm-l6`.
        pooling: mean over tokens, the first token, or the last one; None reads it from the folder's
            `1_Pooling/config.json` and takes the mean where there is none.
        normalise: divide each vector by its length, so that dot products are cosines.
        length: tokens of a text that are read; the rest is cut off.
    """

    def __init__(self, model: str, pooling: Pooling | None, normalise: bool, length: int) -> None:
        self.model, self.normalise, self.length = model, normalise, length
        self._pooling = pooling

    def build(self) -> nn.Module:
        """Return the architecture with random weights, float32."""
        model: nn.Module = build_host(self.model, "float32")
        return model

    def load(self, log: Log = SILENT) -> nn.Module:
        """Return the model with its own weights, float32."""
        model: nn.Module = load_host(self.model, "float32", log)
        return model

    @cached_property
    def pooling(self) -> Pooling:
        """How tokens become one vector.

        Raises:
            ConfigError: the folder asks for a pooling that is not known.
        """
        path = Path(host_folder(self.model)) / "1_Pooling" / "config.json"
        if self._pooling is not None or not path.is_file():
            return self._pooling or "mean"
        try:
            said = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is not readable as JSON: {error}; set pooling=mean, cls or last") from error
        found = [name for key, name in _SAID.items() if said.get(key)]
        if len(found) != 1 or any(said.get(key) for key in _UNKNOWN):
            raise ConfigError(f"{path} asks for a pooling that is not known; set pooling=mean, cls or last")
        return found[0]  # type: ignore[return-value]

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer."""
        return load_tokenizer(host_folder(self.model))

    def batches(self, texts: Sequence[str], size: int) -> Iterator[dict[str, Tensor]]:
        """Yield `input_ids` and `attention_mask`, int64 [size,T], in the order of `texts`, padded at the right."""
        for first in range(0, len(texts), size):
            made = self.tokenizer(
                list(texts[first : first + size]),
                padding=True,
                truncation=True,
                max_length=self.length,
                padding_side="right",
                return_tensors="pt",
            )
            yield {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    def vectors(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return one vector a sentence, float32 [B,d], from hidden states [B,T,d] and mask [B,T]."""
        hidden, held = hidden.float(), mask.to(hidden.device)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), held.sum(1) - 1]
        else:
            weight = held[:, :, None].float()
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return nn.functional.normalize(pooled, dim=1) if self.normalise else pooled
