"""A task of short token sequences with padding and prompts, for language students."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.metrics import ACCURACY
from lessen.task import Task
from lessen.train.settings import FitSettings
from tiny_models import llama


class Words(Task):
    """Rows of tokens in which the next is the last plus 1 or 2; the end of some rows is padding."""

    name = "words"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=3, learning_rate=1e-2, schedule="cosine", patience=None, keep="last")

    def __init__(self, layers: int = 1, vocabulary: int = 24) -> None:
        self.layers, self.vocabulary = layers, vocabulary

    def build(self) -> nn.Module:
        return llama(
            self.vocabulary,
            seed=int(torch.randint(10**6, ())),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=self.layers,
            num_attention_heads=2,
            num_key_value_heads=1,
        )

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed(len(split) * 7 + seed)
        for _ in range(4):
            ids = 2 + torch.randint(1, 3, (6, 10), generator=generator).cumsum(dim=1) % (self.vocabulary - 2)
            mask = torch.ones_like(ids)
            mask[::2, 8:] = 0
            labels = ids.masked_fill(mask == 0, -100)
            labels[:, :3] = -100
            yield {"input_ids": ids, "attention_mask": mask}, labels

    def loss(self, model, batch) -> Tensor:
        found = self.forward(model, batch)
        return F.cross_entropy(found[:, :-1].flatten(0, 1), batch[1][:, 1:].flatten(), ignore_index=-100)

    def outcomes(self, model, split="test"):
        from lessen.metrics import Outcomes

        rows = [
            (self.forward(model, b)[:, 5].detach().numpy(), b[0]["input_ids"][:, 6].numpy())
            for b in self.batches(split)
        ]
        score, target = (np.concatenate(part) for part in zip(*rows, strict=True))
        return Outcomes({"score": score, "target": target})
