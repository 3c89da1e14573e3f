"""The task `written`: a small encoder-decoder that writes the id of the document which a query looks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.loading import hugging_face
from lessen.data.collection import read_cranfield
from lessen.data.text import documents as read_documents
from lessen.errors import DataError
from lessen.metrics import Outcomes
from lessen.metrics.retrieval import MRR, Recall
from lessen.retrieval.categories import nested
from lessen.retrieval.document_writer import DocumentWriter
from lessen.retrieval.trie import Trie
from lessen.retrieval.words import WordVectors, words_of
from lessen.task import Split, Task, TaskOptions
from lessen.train.device import device_of
from lessen.train.settings import FitSettings

DRAWN, TREE, LEVELS = "drawn", (5, 4, 3), (6, 4)
"""The name of documents drawn here; categories of each level of those, and of texts."""
START, END, BEHIND, UNKNOWN, DIGITS = 0, 1, 2, 3, 10
"""Tokens: padding and the start, the end of an id, the end of a path, an unknown word, then the digits of ids."""
IGNORED = -100
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class WrittenOptions(TaskOptions):
    """What a study may set under `task:`."""

    data: str = Field(DRAWN, description="drawn (300 documents in a tree), news, a text, or a folder of Cranfield")
    documents: int = Field(300, ge=4, le=1000, description="documents that ids are written of, the first ones")
    queries: int = Field(200, ge=2, le=10**6, description="queries of the test split; validation: a quarter")
    width: int = Field(64, ge=8, le=1024, description="numbers of a token inside the model")
    words: int = Field(1500, ge=8, le=10**6, description="words that the model reads, the commonest")
    beams: int = Field(10, ge=1, le=1000, description="beams over ids")
    seed: int = Field(0, ge=0, le=2**31, description="of drawn documents, ids and categories")


class WrittenTask(Task):
    """Known items: a sentence of a document, or words drawn from it, looks for it; the unit is a query.

    Batches are (inputs, labels int64 [B, S] with -100 behind, documents int64 [B]). Of each text one sentence tests,
    one validates, the others train; texts of fewer than three sentences are left out. The model is a T5 without
    pretraining.
    """

    name = "written"
    metrics = {"recall@1": Recall(1), "recall@10": Recall(10), "mrr": MRR()}
    columns = ("recall@1", "recall@10", "mrr")
    settings = FitSettings(epochs=60, learning_rate=3e-3, patience=60, schedule="constant")  # nothing is found for long
    Options = WrittenOptions

    def __init__(self, options: WrittenOptions | None = None) -> None:
        self.options = options or WrittenOptions()
        seed, drawn = self.options.seed, self.options.data == DRAWN
        generator = np.random.default_rng(seed)
        texts, tree = _drawn(generator) if drawn else _texts(self.options.data, self.options.documents, seed)
        texts, tree = texts[: self.options.documents], tree[: self.options.documents]
        counts = Counter(word for parts in texts for part in parts[2:] for word in words_of(part))
        self.known = {word: place for place, (word, _) in enumerate(counts.most_common(self.options.words))}
        self.first = UNKNOWN + 1 + DIGITS
        levels = max(map(len, tree))
        wide = 1 + max(max(path) for path in tree)
        self._tree = [[self.first + level * wide + number for level, number in enumerate(path)] for path in tree]
        self.words_at = self.first + levels * wide
        self.tokens = self.words_at + len(self.known)
        numbers = generator.permutation(1000)[: len(texts)]
        self.ids = [[UNKNOWN + 1 + int(digit) for digit in f"{number:03d}"] + [END] for number in numbers]
        self.trie = Trie.of(self.ids)
        self._splits: dict[str, list[tuple[str, int]]] = {"test": [], "validation": [], "train": []}
        for document, parts in enumerate(texts):
            for place, part in enumerate(parts):
                self._splits[("test", "validation")[place] if place < 2 else "train"].append((part, document))
        for split, count in (("test", self.options.queries), ("validation", -(-self.options.queries // 4))):
            order = generator.permutation(len(self._splits[split]))[:count]
            self._splits[split] = [self._splits[split][place] for place in order]

    def paths(self) -> list[list[int]]:
        """Return the tokens of each document's categories, the broadest first, and the end of a path."""
        return [[*path, BEHIND] for path in self._tree]

    def build(self) -> nn.Module:
        """Return an untrained T5 of two blocks on each side."""
        transformers, width = hugging_face(), self.options.width
        config = transformers.T5Config(
            vocab_size=self.tokens, d_model=width, d_kv=max(1, width // 4), d_ff=2 * width, num_layers=2, num_heads=4,
            decoder_start_token_id=START, pad_token_id=START, eos_token_id=END, dropout_rate=0.1,
        )  # fmt: skip
        return DocumentWriter(transformers.T5ForConditionalGeneration(config))

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield batches of 64; the train split is shuffled by `seed`."""
        rows = self._splits[split]
        order = list(range(len(rows)))
        if split == "train":
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        for first in range(0, len(order), 64):
            chosen = [rows[place] for place in order[first : first + 64]]
            documents = torch.tensor([document for _, document in chosen])
            labels = torch.tensor([self.ids[document] for _, document in chosen])
            start = torch.full((len(chosen), 1), START)
            led = {"decoder_input_ids": torch.cat([start, labels[:, :-1]], dim=1)}
            yield {**self.read([text for text, _ in chosen]), **led}, labels, documents

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, int64 [B, T]."""
        rows = [[self._token(word) for word in words_of(text)][:48] or [UNKNOWN] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [START] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def _token(self, word: str) -> int:
        place = self.known.get(word)
        return UNKNOWN if place is None else self.words_at + place

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of the tokens of ids, and of paths where targets hold them."""
        logits = self.forward(model, batch)
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten().to(logits.device), ignore_index=IGNORED)

    @torch.no_grad()
    def outcomes(self, model: Any, split: Split = "test") -> Outcomes:
        """Return where the document of each query stands among those that the beams find; 0 where it is not found."""
        was_training, device = model.training, device_of(model)
        model.eval()
        ranks = []
        for text, document in self._splits[split]:
            inputs = {name: one.to(device) for name, one in self.read([text]).items()}
            hits = model.search(self.trie, inputs["input_ids"], inputs["attention_mask"], self.options.beams)
            found = [hit.document for hit in hits]
            ranks.append(found.index(document) + 1 if document in found else 0)
        model.train(was_training)
        places = np.asarray(ranks, dtype=np.float64)
        within = {f"recall@{k}": ((places > 0) & (places <= k)).astype(np.float64) for k in (1, 10)}
        return Outcomes({**within, "mrr": np.divide(1, places, out=np.zeros(len(places)), where=places > 0)})

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


def _drawn(generator: np.random.Generator) -> tuple[list[list[str]], list[list[int]]]:
    """Return parts of documents, eight bags of words each, and their categories: five documents in each of the last."""
    texts, tree = [], []
    shared = [_name(generator) for _ in range(150)]
    own: dict[tuple[int, ...], list[str]] = {}
    for path in product(*(range(count) for count in TREE)):
        levels = [path[: depth + 1] for depth in range(len(TREE))]
        for level in levels:
            own.setdefault(level, [_name(generator) for _ in range(6)])
        for _ in range(5):
            words = list(generator.choice(shared, 8, replace=False))
            pools = [own[level] for level in levels] + [words, words]
            texts.append([" ".join(str(generator.choice(pool)) for pool in pools) for _ in range(8)])
            tree.append(list(path))
    order = generator.permutation(len(texts))
    return [texts[place] for place in order], [tree[place] for place in order]


def _name(generator: np.random.Generator) -> str:
    return "".join(str(generator.choice(list(letters))) for letters in ("bdfgklmnprst", "aeiou") * 3)


def _texts(data: str, count: int, seed: int) -> tuple[list[list[str]], list[list[int]]]:
    """Return sentences of documents, and categories found by k-means of their words. Raises DataError."""
    path = Path(data)
    whole = list(read_cranfield(path).documents) if path.is_dir() else read_documents(data)
    parts = [[part for part in _SENTENCE.split(text) if len(words_of(part)) > 3] for text in whole]
    parts = [one for one in parts if len(one) > 2][:count]
    if len(parts) < 4:
        raise DataError(f"{data} holds {len(parts)} documents of three sentences or more; at least four are needed")
    joined = [" ".join(one[2:]) for one in parts]  # what tests takes no part in the categories
    return parts, nested(WordVectors(joined)(joined), LEVELS, seed)
