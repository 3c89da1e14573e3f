"""The task `language-tiny`: a byte-level Transformer that learns the manual which every Python ships, in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.data.text import deal
from lessen.metrics import BITS_PER_BYTE, NEXT_TOKEN, PERPLEXITY, Outcomes
from lessen.task import TIMED, Split, Task, TaskOptions, Workload
from lessen.train.settings import FitSettings

BYTES, CONTEXT = 256, 128
LONGEST = 2048
"""Bytes of a document: longer articles are cut into several."""


class ByteTransformer(nn.Module):
    """A causal Transformer over bytes: ids int64 [B, T] to logits float32 [B, T, 256], T at most 128."""

    def __init__(self, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the byte after each."""
        hidden = self.embedding(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class CausalBlock(nn.Module):
    """Attention over what came before, then two layers on each position; both around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T, width] to the same."""
        batch, length, width = hidden.shape
        joined = self.qkv(self.before(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = hidden + self.down(functional.gelu(self.up(self.between(hidden))))
        return result


class ManualOptions(TaskOptions):
    """What a study may set under `task:`."""

    width: int = Field(64, ge=8, le=4096, multiple_of=4, description="width of the network")
    depth: int = Field(2, ge=1, le=64, description="blocks")
    documents: int = Field(40, ge=2, le=1000, description="documents of the test and of the validation split at most")
    steps: int = Field(150, ge=1, le=10**6, description="training steps of 16 windows")


class ManualTask(Task):
    """Predict the next byte of articles of Python's reference manual; batches are (ids, the bytes after them)."""

    name = "language-tiny"
    metrics = {"perplexity": PERPLEXITY, "bits per byte": BITS_PER_BYTE, "next-token accuracy": NEXT_TOKEN}
    columns = ("nll", "tokens", "right", "bytes")
    Options = ManualOptions

    def __init__(self, options: ManualOptions | None = None) -> None:
        self.options = options or ManualOptions()
        self.settings = FitSettings(
            steps=self.options.steps,
            steps_per_epoch=self.options.steps,
            learning_rate=5e-3,
            optimizer="adamw",
            schedule="cosine",
            warmup_steps=max(1, self.options.steps // 10),
            clip_norm=1.0,
        )

    def build(self) -> nn.Module:
        """Return the untrained network."""
        return ByteTransformer(self.options.width, self.options.depth)

    def texts(self, split: Split) -> list[str]:
        """Return the documents of a split: whole articles to train on, their pieces to judge by."""
        found = deal(_articles(), split)
        if split == "train":
            return found
        pieces = [article[start : start + LONGEST] for article in found for start in range(0, len(article), LONGEST)]
        return [piece for piece in pieces if len(piece) > CONTEXT][: self.options.documents]

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield 16 windows of the joined train split, drawn by `seed`; of other splits, those of each document."""
        if split != "train":
            for text in self.texts(split):
                yield from _windows(text)
            return
        joined = _ids("\n".join(self.texts("train")))
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(joined) - CONTEXT - 1, (16,), generator=generator)
            rows = torch.stack([joined[start : start + CONTEXT + 1] for start in starts])
            yield rows[:, :-1], rows[:, 1:]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of the next byte."""
        return functional.cross_entropy(self.forward(model, batch).flatten(0, 1), batch[1].flatten())

    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each document, the sums over its bytes: nll in nats, tokens, right, bytes."""
        was_training = model.training
        model.eval()
        rows = []
        for text in self.texts(split):
            nll, right, count = 0.0, 0, 0
            for ids, after in _windows(text):
                logits = self.forward(model, (ids, after)).float()[0].cpu()
                nll += float(functional.cross_entropy(logits, after[0], reduction="sum"))
                right += int((logits.argmax(dim=1) == after[0]).sum())
                count += after.shape[1]
            rows.append((nll, count, right, count))
        model.train(was_training)
        return Outcomes(dict(zip(self.columns, map(np.asarray, zip(*rows, strict=True)), strict=True)))

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `prefill`: a window that is read."""
        windows = list(_windows(self.texts("test")[0]))[:items]
        return {"prefill": Workload(self.forward, windows, int(windows[0][0].numel()), "tokens")}

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def notes(self) -> list[str]:
        """Return what is judged."""
        count = len(self.texts("test"))
        return [f"{count} documents of at most {LONGEST} bytes from the manual that this Python ships"]


@lru_cache(maxsize=1)
def _articles() -> list[str]:
    from pydoc_data.topics import topics

    return [str(topics[name]) for name in sorted(topics) if len(topics[name]) > CONTEXT]


def _ids(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def _windows(text: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, the bytes after them), int64 [1, T] each: windows side by side, the first byte never judged."""
    ids = _ids(text)
    for start in range(0, len(ids) - 1, CONTEXT):
        piece = ids[start : start + CONTEXT + 1]
        yield piece[None, :-1], piece[None, 1:]
