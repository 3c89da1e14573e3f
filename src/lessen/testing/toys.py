"""Small tasks that the contract runs methods on, one for each family that can share one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lessen.log import SILENT, Log
from lessen.metrics import AUC, LOGLOSS
from lessen.task import Split, Task
from lessen.tasks.codecs.pictures import PicturesOptions, PicturesTask
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.tasks.language.manual import ManualOptions, ManualTask
from lessen.tasks.multimodal.grid import GridOptions, GridTask
from lessen.tasks.retrieval.composed import ComposedOptions, ComposedTask
from lessen.tasks.retrieval.vectors import VectorsOptions, VectorsTask
from lessen.tasks.retrieval.words import WordsOptions, WordsTask
from lessen.tasks.retrieval.written import WrittenOptions, WrittenTask
from lessen.tasks.series.waves import WavesOptions, WavesTask
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.testing.colours import ColourTask
from lessen.testing.sentences import SentenceTask
from lessen.train.settings import FitSettings

ITEMS, TAGS, TAGS_EACH, DIM = 1500, 1200, 3, 12
SIZES: dict[Split, int] = {"train": 1024, "validation": 256, "test": 256}


class TableNet(nn.Module):
    """A user's model as they come: an embedding, a bag of embeddings and a perceptron.

    items [B] -> Embedding ---.
    tags [B, 3] -> mean bag --+--> Linear -> ReLU -> Linear -> ReLU -> Linear -> [B]
    """

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, DIM, padding_idx=0)
        self.tags = nn.EmbeddingBag(TAGS, DIM, mode="mean")
        with torch.no_grad():
            for table in (self.items, self.tags):
                # three strong directions, as trained tables have, so that low-rank methods find something
                table.weight.copy_(torch.randn(len(table.weight), 3) @ torch.randn(3, DIM) * 0.3)
                table.weight.add_(torch.randn_like(table.weight) * 0.02)
            self.items.weight[0] = 0.0
        self.first = nn.Linear(2 * DIM, 64)
        self.second = nn.Linear(64, 64)
        self.last = nn.Linear(64, 1)

    def forward(self, items: Tensor, tags: Tensor) -> Tensor:
        """Return logits [B] for items [B] and tags [B, 3], both int64."""
        joined = torch.cat([self.items(items), self.tags(tags)], dim=1)
        hidden = torch.relu(self.second(torch.relu(self.first(joined))))
        logits: Tensor = self.last(hidden)[:, 0]
        return logits


class TableTask(Task):
    """Clicks planted on item and tag effects; Zipf-like ids; two short epochs train it."""

    name = "contract-tables"
    metrics = {"auc": AUC, "logloss": LOGLOSS}
    settings = FitSettings(epochs=2, learning_rate=1e-2, patience=1)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        total = sum(SIZES.values())
        self.items = 1 + (torch.rand(total, generator=generator) ** 3 * (ITEMS - 1)).long()
        self.tags = (torch.rand(total, TAGS_EACH, generator=generator) ** 2 * TAGS).long()
        effect = torch.randn(ITEMS, generator=generator)[self.items]
        effect += torch.randn(TAGS, generator=generator)[self.tags].mean(dim=1)
        self.labels = (torch.rand(total, generator=generator) < torch.sigmoid(2 * effect)).float()

    def build(self) -> nn.Module:
        """Return an untrained TableNet."""
        return TableNet()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield ((items, tags), labels), 256 examples a batch."""
        names = list(SIZES)
        start = sum(SIZES[name] for name in names[: names.index(split)])
        order = torch.arange(start, start + SIZES[split])
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for rows in torch.split(order, 256):
            yield (self.items[rows], self.tags[rows]), self.labels[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(self.forward(model, batch), batch[1])

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return a model trained for one short epoch; the contract does not judge quality."""
        with torch.random.fork_rng(devices=[]):
            return super().reference(seed, log)


class RepeatedRowsTask(TableTask):
    """The same model with rows that repeat, as never-trained or merged tables have; its reference is not trained."""

    name = "contract-repeated-rows"

    def build(self) -> nn.Module:
        """Return a TableNet in which four rows of five are copies."""
        model = TableNet()
        with torch.no_grad():
            for table in (model.items, model.tags):
                table.weight[1:] = table.weight[1 + torch.arange(len(table.weight) - 1) % 200]
        return model

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002
        """Return an untrained model, whose copies are equal still."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().eval()


class TaughtTableTask(TableTask):
    """The same task with a teacher: the reference of another seed."""

    name = "contract-taught-tables"

    def __init__(self) -> None:
        super().__init__()
        self.teachers: dict[int, nn.Module] = {}

    def teacher(self, seed: int) -> nn.Module:
        """Return it, trained once a seed."""
        if seed not in self.teachers:
            self.teachers[seed] = self.reference(seed + 1)
        return self.teachers[seed]


def taught_bytes() -> Task:
    """Return a small byte-level language model's task, with a teacher of another seed."""
    task = _few_bytes(2)
    return task.view(teacher=lambda seed: _untrained(task, seed + 1), reference=_few_reference(task))


def deep_bytes() -> Task:
    """Return a language model of eight blocks, untrained."""
    task = _few_bytes(8)
    return task.view(reference=_few_reference(task))


def taught_shapes() -> Task:
    """Return drawn shapes for a convolutional network, with an untrained teacher."""
    task = _quick(ShapesTask(ShapesOptions(examples=160)), 1)
    return task.view(teacher=lambda seed: _untrained(task, seed + 1), reference=_few_reference(task))


def _few_bytes(depth: int) -> Task:
    """Return a task whose train split ends after three batches of four rows, and that judges 64 bytes a document."""
    task = ManualTask(ManualOptions(width=8, depth=depth, documents=2, steps=3))

    def batches(split: Split, seed: int = 0) -> Iterator[Any]:
        for ids, after in itertools.islice(task.batches(split, seed), 3):
            yield ids[:4, :64], after[:4, :64]

    texts = {split: [text[:65] for text in task.texts(split)] for split in ("validation", "test")}
    return task.view(batches=batches, texts=lambda split: texts.get(split) or task.texts(split))


def _few_reference(task: Task) -> Callable[..., nn.Module]:
    return lambda seed=0, log=SILENT: _untrained(task, seed)  # noqa: ARG005


def _not_trained(task: Task) -> Task:
    """Return the task with a reference that is built and not trained: the contract does not judge quality."""
    return task.view(reference=_few_reference(task))


def _untrained(task: Task, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build().eval()


def waves() -> Task:
    """Return series of three classes."""
    return WavesTask(WavesOptions(rows=90, channels=2, told=1, length=32, classes=3, noise=1.0))


def columns() -> Task:
    """Return a click log of six columns, for methods that choose among fields."""
    return _quick(
        SyntheticClicks(SyntheticOptions(rows=3000, fields=4, noise_fields=2, rows_per_field=50, strength=2.0)), 2
    )


def pictures_in_tokens() -> Task:
    """Return a small vision Transformer's task, for methods that act on its tokens."""
    return _quick(ColourTask(), 1)


def questions_about_pictures() -> Task:
    """Return questions about drawn pictures, for methods that act on visual tokens; nothing is trained."""
    task = GridTask(GridOptions(about="stills", questions=10, train_pictures=10, timing_batch=2, batch=4))
    return task.view(reference=_few_reference(task))


def questions_about_films() -> Task:
    """Return the same with films of four pictures."""
    task = GridTask(GridOptions(about="films", questions=10, train_pictures=10, timing_batch=2, batch=6))
    return task.view(reference=_few_reference(task))


def pictures_on_a_wire() -> Task:
    """Return drawn pictures through a codec."""
    return PicturesTask(PicturesOptions(pictures=4, side=32))


def neighbours() -> Task:
    """Return an index and queries."""
    return VectorsTask(VectorsOptions(rows=400, dim=32, queries=40))


def articles() -> Task:
    """Return a byte-level language model's task whose batches come from its texts, a few at a time."""
    return ManualTask(ManualOptions(width=8, depth=1, documents=2, steps=3)).view(
        reference=_few_reference(_few_bytes(1))
    )


def changed_items() -> Task:
    """Return references and changes that look for items."""
    return _not_trained(_quick(ComposedTask(ComposedOptions(items=60, examples=64)), 1))


def written_words() -> Task:
    """Return pictures of words and the words."""
    return _not_trained(_quick(WordsTask(WordsOptions(words=12, examples=96)), 1))


def written_ids() -> Task:
    """Return queries and the ids of the documents that they look for."""
    return _not_trained(_quick(WrittenTask(WrittenOptions(documents=20, queries=4, width=16, beams=2)), 1))


def another_style() -> Task:
    """Return a network of one style with the data of another, for methods that adapt or choose what is learned."""
    return _quick(ShapesTask(ShapesOptions(examples=320, style="faded", pretrained="filled")), 2)


def _quick(task: Task, epochs: int) -> Task:
    """Return the task with a short training: the contract asks what code does, not how well."""
    return task.view(settings=dataclasses.replace(task.settings, epochs=epochs))


class NormedTableNet(TableNet):
    """A TableNet with a batch norm that the layer before it can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, items: Tensor, tags: Tensor) -> Tensor:
        """Return logits [B] for items [B] and tags [B, 3], both int64."""
        joined = torch.cat([self.items(items), self.tags(tags)], dim=1)
        hidden = torch.relu(self.second(torch.relu(self.norm(self.first(joined)))))
        logits: Tensor = self.last(hidden)[:, 0]
        return logits


class NormedTableTask(TableTask):
    """The clicks of TableTask for a model that carries what it does not need."""

    name = "contract-norms"

    def build(self) -> nn.Module:
        """Return an untrained NormedTableNet."""
        return NormedTableNet()


TOYS: dict[str, Callable[[], Task]] = {
    "embeddings": TableTask,
    "weights": TableTask,
    "int8-static": another_style,
    "yolov6-qat": another_style,
    "qarepvgg": another_style,
    "rep-optimizer": another_style,
    "quarot": pictures_in_tokens,
    "emb-dedup": RepeatedRowsTask,
    "intactkv": SentenceTask,
    "kivi": SentenceTask,
    "fold": NormedTableTask,
    "magnitude-pruning": pictures_in_tokens,
    "random-pruning": pictures_in_tokens,
    "first-order-pruning": pictures_in_tokens,
    "layer-drop": pictures_in_tokens,
    "mope": pictures_in_tokens,
    "vtrans": pictures_in_tokens,
    "features": columns,
    "tokens": pictures_in_tokens,
    "determinantal-tokens": questions_about_pictures,
    "fastv": questions_about_pictures,
    "feather": questions_about_pictures,
    "random-tokens": questions_about_pictures,
    "uniform-tokens": questions_about_pictures,
    "adem-vl": questions_about_pictures,
    "free-video-llm": questions_about_films,
    "hires-llava": questions_about_pictures,
    "slime": questions_about_films,
    "codecs": pictures_on_a_wire,
    "retrieval": neighbours,
    "stationary-compat": taught_shapes,
    "cfcd": taught_shapes,
    "lbl2vec": articles,
    "spn4cir": changed_items,
    "fdp": written_words,
    "hype": written_ids,
    "adapt": another_style,
    "data": another_style,
    "distil": TaughtTableTask,
    "drop-am": columns,
    "distill-am": columns,
    "bias-loss": taught_shapes,
    "rotnet": taught_shapes,
    "unit": taught_shapes,
    "ofa-kd": taught_shapes,
    "cwd": taught_shapes,
    "gkd": taught_bytes,
    "sequence-kd": taught_bytes,
    "semantic-revision": taught_bytes,
    "random-sampling-kd": taught_bytes,
    "layer-cut": deep_bytes,
    "series": waves,
}
"""Contract task by method name or family; a built-in family without one fails the contract's test. A method of a third
party's family is checked on the task that its author passes."""
