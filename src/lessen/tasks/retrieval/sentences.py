"""The tasks `retrieval` and `similarity`: sentence encoders judged query by query, or pair by pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.loading import MINILM
from lessen.data.collection import Collection, known_items, read_cranfield, read_lee
from lessen.data.text import NEWS, documents
from lessen.errors import ConfigError, DataError, TaskError
from lessen.log import SILENT, Log
from lessen.metrics import MRR, NDCG, Outcomes, Recall, Spearman
from lessen.metrics.retrieval import ranked
from lessen.task import TIMED, Split, Task, TaskOptions, Workload, call_model
from lessen.tasks.retrieval.encoding import Pooling, SentenceEncoder
from lessen.train.device import device_of, to_device
from lessen.train.settings import FitSettings

TEMPERATURE = 0.05
TURNS = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}


class EncoderOptions(TaskOptions):
    """What a study may set under `task:`, whatever an encoder is judged by."""

    model: str = Field(MINILM, description="Hugging Face folder of an encoder, or minilm-l6")
    pooling: Pooling | None = Field(None, description="mean, cls or last; by default as the folder says, else mean")
    normalise: bool = Field(True, description="divide vectors by their length, so that products are cosines")
    length: int = Field(256, ge=2, le=100_000, description="tokens of a text that are read")
    batch: int = Field(32, ge=2, le=4096, description="texts of a batch")
    timing_batch: int = Field(8, ge=1, le=4096, description="texts of the batch that is timed")


class RetrievalOptions(EncoderOptions):
    """What a study may set under `task:`."""

    data: str = Field(NEWS, description="folder of Cranfield in TREC's form, a text file, or news")
    queries: int = Field(60, ge=2, le=1_000_000, description="queries of the test split, and of the validation split")


class SentenceTask(Task):
    """A sentence encoder; inputs are `input_ids` and `attention_mask`, int64 [B,T]; outputs are vectors [B,d]."""

    provides = frozenset({"labels", "gradients", "training", "calibration"})
    pretrained = True
    settings = FitSettings(epochs=1, learning_rate=2e-5, optimizer="adamw", weight_decay=0.01, clip_norm=1.0)

    def __init__(self, options: EncoderOptions) -> None:
        self.options = options
        self.encoder = SentenceEncoder(options.model, options.pooling, options.normalise, options.length)

    def build(self) -> nn.Module:
        """Return the encoder's architecture with random weights."""
        return self.encoder.build()

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - one trained reference
        """Return the encoder with its own weights, in eval mode."""
        return self.encoder.load(log)

    def hosted(self, model: str) -> SentenceTask:
        """Return the same task for another encoder."""
        return type(self)(self.options.model_copy(update={"model": model}))

    def inputs(self, batch: Any) -> Any:
        """Return the batch: keyword arguments of the encoder."""
        return batch

    def target(self, batch: Any) -> Tensor:
        """Return the row of each text in the batch: a text's partner lies half a batch away."""
        return torch.arange(len(batch["input_ids"]))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the pooled vectors of a batch, float32 [B,d]."""
        hidden = call_model(model, to_device(batch, device_of(model)))
        if hidden.dim() != 3:
            raise TaskError(
                f"{self.options.model} gives {list(hidden.shape)} and not hidden states [texts, tokens, width]"
            )
        return self.encoder.vectors(hidden, batch["attention_mask"])

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the contrastive loss of a training batch: its first half looks for its second half."""
        first, second = self.forward(model, batch).chunk(2)
        scores = first @ second.t() / TEMPERATURE
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    def example_batch(self) -> dict[str, Tensor]:
        """Return the first `timing_batch` texts of the test split."""
        return next(self.encoder.batches(self._timed(1), self.options.timing_batch))

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `encode`: a batch of texts into vectors."""
        size = self.options.timing_batch
        batches = list(islice(self.encoder.batches(self._timed(items), size), items))
        return {"encode": Workload(self.forward, batches, size, "texts")}

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def _timed(self, batches: int) -> list[str]:
        texts, wanted = self._test_texts(), batches * self.options.timing_batch
        return (texts * -(-wanted // len(texts)))[:wanted]

    def _test_texts(self) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__}._test_texts")

    @torch.no_grad()
    def encode(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, float32 [texts,d]; long and short ones are read together, by length."""
        was_training = model.training
        model.eval()
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        batches = self.encoder.batches([texts[n] for n in order], self.options.batch)
        found = torch.cat([self.forward(model, batch).cpu() for batch in batches])
        model.train(was_training)
        vectors = torch.empty_like(found)
        vectors[torch.tensor(order)] = found
        return vectors


class RetrievalTask(SentenceTask):
    """Find the documents that answer a query among all documents of a collection, by the product of their vectors.

    One of every five queries tests and one validates; all documents are searched by each. The first sentence of each
    document, from a text file or the news that a package ships, looks for what follows it.
    """

    name = "retrieval"
    metrics = {"ndcg@10": NDCG(10), "recall@1": Recall(1), "recall@10": Recall(10), "mrr": MRR()}
    columns = ("ndcg@10", "recall@1", "recall@10", "mrr", "map", "relevant")
    Options = RetrievalOptions
    options: RetrievalOptions

    def __init__(self, options: RetrievalOptions | None = None) -> None:
        super().__init__(options or RetrievalOptions())

    def pairs(self, split: Split) -> list[tuple[str, str]]:
        """Return each query of a split with the best of its documents."""
        held = self._queries(split)
        best = (max(grades, key=lambda n, g=grades: (g[n], -n)) for grades in held.grades)  # type: ignore[misc]
        return [(query, held.documents[n]) for query, n in zip(held.queries, best, strict=True)]

    def texts(self, split: Split) -> list[str]:
        """Return the queries of a split and, for all splits alike, the documents."""
        held = self._queries(split)
        return [*held.queries, *held.documents]

    def batches(self, split: Split, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield training pairs, queries then their documents, in the order of `seed`; or the texts of a split."""
        if split != "train":
            yield from self.encoder.batches(self.texts(split), self.options.batch)
            return
        pairs, half = self.pairs("train"), self.options.batch // 2
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
        for first in range(0, len(order) - half + 1, half):
            chosen = [pairs[n] for n in order[first : first + half]]
            both = [query for query, _ in chosen] + [document for _, document in chosen]
            yield next(self.encoder.batches(both, len(both)))

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each query, where its relevant documents stand, and how many there are."""
        held = self._queries(split)
        documents, queries = self.encode(model, held.documents), self.encode(model, held.queries)
        grades = np.zeros((len(held.queries), len(held.documents)))
        for row, found in enumerate(held.grades):
            grades[row, list(found)] = list(found.values())
        columns = ranked((queries @ documents.t()).numpy(), grades)
        return Outcomes({**columns, "relevant": (grades > 0).sum(axis=1)})

    def notes(self) -> list[str]:
        """Return what was searched, and how texts became vectors."""
        held = self._queries("test")
        kind = "the first sentence of each looks for the rest" if self._made else "judged by people"
        return [
            f"{len(held.queries)} queries over {len(held.documents)} documents of {self.options.data} ({kind}); "
            f"{self.encoder.pooling} pooling, {'normalised' if self.options.normalise else 'not normalised'}, texts "
            f"cut at {self.options.length} tokens"
        ]

    @property
    def _made(self) -> bool:
        return not Path(self.options.data).is_dir()

    @cached_property
    def _collection(self) -> Collection:
        if self._made:
            return known_items(documents(self.options.data))
        return read_cranfield(Path(self.options.data))

    def _queries(self, split: Split) -> Collection:
        whole = self._collection
        places = [n for n in range(len(whole.queries)) if n % 5 in TURNS[split]]
        if split != "train":
            places = places[: self.options.queries]
        if len(places) < 2:
            raise DataError(f"{self.options.data} gives {len(places)} {split} queries; at least two are needed")
        return whole.part(places)

    def _test_texts(self) -> list[str]:
        return list(self._collection.documents)


class RetrievalMiniLMTask(RetrievalTask):
    """`retrieval` under the name of its default encoder, of 22.7 million parameters."""

    name = "retrieval-minilm"


class SimilarityTask(SentenceTask):
    """Hold texts as alike as people do: 1,225 pairs of 50 news items, each rated by about ten people.

    Pairs share items, so that the interval over pairs is narrower than one over items would be.
    """

    name = "similarity"
    metrics = {"spearman": Spearman()}
    columns = ("score", "target")
    provides = frozenset({"labels"})
    Options = EncoderOptions

    def __init__(self, options: EncoderOptions | None = None) -> None:
        super().__init__(options or EncoderOptions())
        if not self.options.normalise:
            raise ConfigError(
                f"{self.name}: normalise=false is not accepted: people's ratings are compared with cosines"
            )

    def batches(self, split: Split, seed: int = 0) -> Iterator[dict[str, Tensor]]:  # noqa: ARG002 - nothing is trained
        """Yield the items; every split but the train split, which is empty, holds all of them."""
        if split != "train":
            yield from self.encoder.batches(self._items[0], self.options.batch)

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:  # noqa: ARG002 - one split
        """Return, for each pair, the cosine of its vectors and people's rating."""
        items, ratings = self._items
        vectors = self.encode(model, items)
        first, second = np.asarray(list(combinations(range(len(items)), 2))).T
        return Outcomes({"score": (vectors @ vectors.t()).numpy()[first, second], "target": ratings[first, second]})

    def notes(self) -> list[str]:
        """Return what was compared."""
        return ["1,225 pairs of 50 news items; pairs share items, so that their interval is too narrow by some"]

    @cached_property
    def _items(self) -> tuple[list[str], np.ndarray]:
        return read_lee()

    def _test_texts(self) -> list[str]:
        return self._items[0]
