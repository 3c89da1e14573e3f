"""A small language task for methods that act on the cache of a decoder: a tiny Llama on made-up sentences."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.architectures.loading import hugging_face
from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY
from lessen.task import Split, Task

ROWS: dict[Split, int] = {"train": 16, "validation": 8, "test": 8}
LENGTH, WORDS = 24, 40


class SentenceTask(Task):
    """Random words behind the same two tokens; the unit is a sentence, judged by its last word. Nothing is trained."""

    name = "contract-sentences"
    metrics = {"accuracy": ACCURACY}
    opening = (3, 5)
    options = SimpleNamespace(piece=8)

    def build(self) -> nn.Module:
        """Return a Llama of two small blocks."""
        transformers = hugging_face()
        config = transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            bos_token_id=3,
            eos_token_id=1,
            pad_token_id=0,
        )
        model: nn.Module = transformers.LlamaForCausalLM(config)
        return model

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - nothing is trained
        """Return a model with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return copy.deepcopy(self.build()).eval()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield (inputs, labels), four sentences int64 [4, 24] a batch; the prefix is not judged."""
        generator = torch.Generator().manual_seed(len(split) + (1000 + seed if split == "train" else 0))
        for _ in range(ROWS[split] // 4):
            ids = torch.randint(6, WORDS, (4, LENGTH), generator=generator)
            ids[:, : len(self.opening)] = torch.tensor(self.opening)
            labels = ids.clone()
            labels[:, : len(self.opening) + 1] = -100
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of the next word."""
        logits, labels = self.forward(model, batch), self.target(batch)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the scores of the word after the last, float32 [B, words]."""
        return self.forward(model, batch)[:, -1].float()
