"""Lbl2Vec: train and calibrate on the texts that a few keywords stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from pydantic import Field
from torch import Tensor, nn

from lessen.capabilities import HasPairs, HasText
from lessen.errors import ConfigError, DataError, TaskError
from lessen.log import Log
from lessen.method import Card, Context, Method
from lessen.retrieval.topics import TopicSettings, find_topic, in_domain, scores
from lessen.retrieval.words import WordVectors
from lessen.task import Task


class Lbl2Vec(Method):
    """Keep the training texts nearest to topics, each given by keywords; later steps calibrate and train on them.

    Source: Schopf, Braun and Matthes, WEBIST 2021: a topic is the mean of the documents nearest to the mean of its
    keywords; documents are scored by their cosine with it. The model stays as it is. Differences: vectors are word
    counts (tf-idf) or those of a sentence encoder, in place of a Doc2Vec trained on the corpus; ten documents make a
    topic, where the published defaults take one; without keywords one topic is made of the words that weigh most in the
    validation texts; no topic takes all places: turns are taken.
    """

    card = Card(
        name="lbl2vec",
        family="retrieval",
        summary="Calibrate and train on the texts nearest to topics that keywords name.",
        acts_on=("data",),
        source="Lbl2Vec, Schopf, Braun and Matthes, WEBIST 2021",
        needs=frozenset({"calibration", "text"}),
        claims=frozenset(),
    )
    topics: tuple[tuple[str, ...], ...] = Field(
        (), description="keywords of each topic, such as [[wing, lift], [heat, transfer]]; none: of validation texts"
    )
    share: float = Field(0.25, gt=0, le=1, description="share of the training texts that stays")
    encoder: str = Field("words", description="words (tf-idf), minilm-l6, or the Hugging Face folder of an encoder")
    at_least: int = Field(10, ge=1, le=1 << 20, description="documents that make a topic (min_num_docs)")

    def prepare(self, task: Task, context: Context) -> Task:
        """Return the task with fewer training texts.

        Raises:
            TaskError: there is nothing to choose from, or batches do not come from the task's texts.
            DataError: no keyword is known. ConfigError: a topic has no keyword.
        """
        asked: set[str] = set()
        if isinstance(task, HasPairs):
            pairs = list(task.pairs("train"))
            kept = self._kept([f"{query} {document}" for query, document in pairs], task, context)
            made: Task = task.view(pairs=_noting([pairs[place] for place in kept], task.pairs, asked))
        else:
            held = cast("HasText", task)
            texts = list(held.texts("train"))
            kept = self._kept(texts, task, context)
            made = task.view(texts=_noting([texts[place] for place in kept], held.texts, asked))
        next(iter(made.batches("train")), None)
        if "train" not in asked:
            raise TaskError(
                f"{self.card.name}: the training batches of task {task.name!r} do not come from its texts or pairs, so "
                "that choosing among them would change nothing"
            )
        return made

    def _kept(self, texts: Sequence[str], task: Task, context: Context) -> list[int]:
        """Return the places of the texts that stay, in their order."""
        if len(texts) < 2:
            raise TaskError(f"{self.card.name}: task {task.name!r} has {len(texts)} training texts to choose from")
        counted = WordVectors(texts)
        topics = [list(one) for one in self.topics]
        if not topics:
            shown = [str(text) for text in cast("HasText", task).texts("validation")]
            topics = [counted.typical(shown, 20)]
        if not all(topics):
            raise ConfigError(f"{self.card.name}: topic {topics.index([])} has no keyword; give each at least one")
        found = [self._vectors(counted, one, context.log) for one in topics]
        documents = self._vectors(counted, texts, context.log)
        settings = TopicSettings(at_least=min(self.at_least, len(texts)))
        made = []
        for words, vectors in zip(topics, found, strict=True):
            known = vectors[vectors.norm(dim=1) > 0]
            if not len(known):
                raise DataError(f"{self.card.name}: no training text holds any of {', '.join(words)}; name other words")
            made.append(find_topic(known, documents, settings))
        count = max(1, round(self.share * len(texts)))
        chosen = sorted(in_domain(scores(documents, made), count))
        context.findings |= {"texts": len(chosen), "of": len(texts), "topics": [words[:20] for words in topics]}
        return chosen

    def _vectors(self, counted: WordVectors, texts: Sequence[str], log: Log) -> Tensor:
        if self.encoder == "words":
            return counted(texts)
        from lessen.tasks.retrieval.readers import TextReader

        names = [f"{place} of the training texts" for place in range(len(texts))]
        return TextReader(self.encoder, length=128, log=log).vectors([text or "." for text in texts], names)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002 - data alone change
        """Return the model as it is. Raises TaskError: no training batch is left."""
        if next(iter(task.batches("train")), None) is None:
            raise TaskError(f"{self.card.name}: task {task.name!r} has an empty train split")
        return model


def _noting(chosen: list[Any], given: Callable[[Any], Any], asked: set[str]) -> Callable[[Any], Any]:
    """Return what gives the chosen examples for the train split, and notes which splits are asked for."""

    def examples(split: Any) -> Any:
        asked.add(split)
        return chosen if split == "train" else given(split)

    return examples
