"""A small task for models that see pictures: which colour is the cell of a picture, and in which row or column is it.

film of F pictures 4 x 4 cells, one of them coloured in each -> <s> picture ... picture  frame i  colour? -> one word

A LLaVA of Hugging Face built from a config learns it in a minute; every answer needs one token of 16 * F.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.errors import MissingExtraError
from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

SIDE, CELL = 4, 8
COLOURS, IMAGE = 6, 2
KINDS = ("colour", "row", "column")
FIRST = 3
"""Words from here on: kinds, frames, colours, rows, columns."""
SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


class GlanceTask(Task):
    """Batches are (inputs by name, word int64 [B], kind int64 [B]); only the last logits are wanted.

    Args:
        frames: pictures of a film; sizes: questions of the train split and of each other split.
    """

    name = "tiny-glances"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(
        epochs=12, learning_rate=3e-3, optimizer="adamw", clip_norm=1.0, plateau_factor=0.5, patience=4
    )

    def __init__(self, frames: int = 1, sizes: tuple[int, int] = (4096, 768), batch: int = 64) -> None:
        self.frames, self.sizes, self.batch = frames, sizes, batch
        self.words = FIRST + len(KINDS) + frames + COLOURS + 2 * SIDE
        self.references: dict[int, nn.Module] = {}

    def build(self) -> nn.Module:
        """Return an untrained LLaVA of 16 visual tokens a picture. Raises MissingExtraError without transformers."""
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("hf", "transformers", "the task tiny-glances") from error
        hugging: Any = transformers
        small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        tower = {"num_hidden_layers": 1, "image_size": SIDE * CELL, "patch_size": CELL, "projection_dim": 32}
        text = {
            "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": self.words, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": None, "max_position_embeddings": 512,
        }  # fmt: skip
        config = hugging.LlavaConfig(
            vision_config=hugging.CLIPVisionConfig(**small, **tower),
            text_config=hugging.LlamaConfig(**small, **text),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            pad_token_id=0,
        )
        model: nn.Module = hugging.LlavaForConditionalGeneration(config)
        return model

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return the trained model of a seed; it is trained once."""
        if seed not in self.references:
            self.references[seed] = super().reference(seed, log)
        return copy.deepcopy(self.references[seed])

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Yield batches; the train split shows other pictures for each `seed`."""
        draw = torch.Generator().manual_seed(1000 * (seed if split == "train" else 0) + SEEDS[split])
        total = self.sizes[0] if split == "train" else self.sizes[1]
        for first in range(0, total, self.batch):
            yield self._drawn(min(self.batch, total - first), draw)

    def _drawn(self, count: int, draw: torch.Generator) -> tuple[dict[str, Any], Tensor, Tensor]:
        shape = (count, self.frames)
        rows, columns = (torch.randint(0, SIDE, shape, generator=draw) for _ in range(2))
        colours = torch.randint(0, COLOURS, shape, generator=draw)
        pixels = 0.3 * torch.randn(count, self.frames, 3, SIDE, CELL, SIDE, CELL, generator=draw)
        bits = torch.stack([(colours + 1) >> place & 1 for place in range(3)], -1).float()
        one, two = torch.meshgrid(torch.arange(count), torch.arange(self.frames), indexing="ij")
        pixels[one, two, :, rows, :, columns] += 2.0 * bits[..., None, None]
        kind, frame = (torch.randint(0, most, (count,), generator=draw) for most in (len(KINDS), self.frames))
        start = FIRST + len(KINDS) + self.frames
        told = torch.stack([start + colours, start + COLOURS + rows, start + COLOURS + SIDE + columns])
        target = told[kind, torch.arange(count), frame]
        ids = torch.full((count, 3 + SIDE * SIDE * self.frames), IMAGE)
        ids[:, 0], ids[:, -2], ids[:, -1] = 1, FIRST + len(KINDS) + frame, FIRST + kind
        flat = pixels.reshape(count * self.frames, 3, SIDE * CELL, SIDE * CELL)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": flat, "logits_to_keep": 1}
        return inputs, target, kind

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits of the word after each prompt, [B, words]."""
        logits: Tensor = model(**batch[0]).logits[:, -1]
        return logits

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy of the answers."""
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])

    def kinds(self, split: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the place in `KINDS` of each question."""
        return np.concatenate([kind.numpy() for _, _, kind in self.batches(split)])
