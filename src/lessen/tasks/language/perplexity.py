"""The task `language`: how well a causal language model predicts documents, each a unit of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.context import CONTEXT_NAMES
from lessen.architectures.folder import companions, read_folder
from lessen.architectures.loading import (
    SMOLLM2,
    build_host,
    check_vocabulary,
    host_folder,
    load_host,
    load_tokenizer,
)
from lessen.costs import KEY_VALUES
from lessen.data.text import NEWS, Unit, deal, documents
from lessen.decoding.opening import opening
from lessen.errors import ConfigError, DataError
from lessen.log import SILENT, Log
from lessen.metrics import BITS_PER_BYTE, NEXT_TOKEN, PERPLEXITY, Outcomes
from lessen.task import TIMED, Split, Task, TaskOptions, Workload
from lessen.tasks.language.pieces import read_in_pieces
from lessen.tasks.language.timing import decode, prefill
from lessen.tasks.language.windows import UNJUDGED, Window, judged, packed, started, windows
from lessen.train.device import device_of, to_device
from lessen.train.settings import FitSettings


class LanguageOptions(TaskOptions):
    """What a study may set under `task:`."""

    model: str = Field(SMOLLM2, description="Hugging Face folder, GGUF file, or smollm2-135m-instruct")
    text: str = Field(NEWS, description="UTF-8 file, folder of .txt files, or news (300 items that a package ships)")
    unit: Unit | None = Field(None, description="how a file is cut: line, paragraph, article or file")
    documents: int = Field(32, ge=2, le=1_000_000, description="documents of the test split")
    validation_documents: int = Field(8, ge=2, le=1_000_000, description="documents of the validation split")
    train_documents: int = Field(64, ge=1, le=10_000_000, description="documents that methods calibrate and train on")
    window: int = Field(512, ge=8, le=1_000_000, description="tokens that the model sees at once")
    stride: int = Field(256, ge=1, le=1_000_000, description="tokens between the starts of two windows")
    prefix: str | None = Field(
        None, description="what every window starts with, never judged: bos, chat (what the template starts with), text"
    )
    piece: int | None = Field(
        None, ge=1, le=1_000_000, description="tokens of a window read at once, the cache between; null: all of it"
    )
    dtype: str = Field("float32", description="float32, bfloat16 or float16")
    batch: int = Field(4, ge=1, le=4096, description="windows of a training batch")
    prefill: int = Field(64, ge=2, le=100_000, description="tokens of the prompt that is timed")
    decode: int = Field(4, ge=1, le=10_000, description="tokens that are written when decoding is timed")


class LanguageTask(Task):
    """Predict the next token of documents; inputs are `input_ids` and `attention_mask`, int64 [B,T].

    Texts are tokenised with the special tokens that the model's own tokenizer adds. The first token of a document is
    never judged. Documents longer than a window are read in windows that overlap (see `windows`). `prefix` makes each
    window, of training too, start with the same tokens, and then a document brings no special tokens of its own.
    """

    name = "language"
    metrics = {"perplexity": PERPLEXITY, "bits per byte": BITS_PER_BYTE, "next-token accuracy": NEXT_TOKEN}
    columns = ("nll", "tokens", "right", "bytes")
    settings = FitSettings(epochs=1, learning_rate=1e-5, optimizer="adamw", weight_decay=0.0, clip_norm=1.0)
    pretrained = True
    Options: ClassVar[type[TaskOptions] | None] = LanguageOptions

    def __init__(self, options: LanguageOptions | None = None) -> None:
        self.options = options or LanguageOptions()
        if self.options.stride >= self.options.window:
            raise ConfigError(
                f"{self.name}: stride {self.options.stride} must be less than the window {self.options.window}, so "
                "that every judged token has one before it"
            )

    # -- the model ----------------------------------------------------------------------------------------------
    def build(self) -> nn.Module:
        """Return the model's architecture with random weights, in the task's dtype."""
        model: nn.Module = build_host(self.options.model, self.options.dtype)
        return model

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - one trained reference
        """Return the model with its own weights, in eval mode."""
        model: nn.Module = load_host(self.options.model, self.options.dtype, log)
        return model

    def hosted(self, model: str) -> LanguageTask:
        """Return the same task for another model."""
        return type(self)(self.options.model_copy(update={"model": model}))

    @classmethod
    def of_host(cls, model: str, text: str | None = None) -> LanguageTask:
        """Return the task for a model of your own: windows that its positions hold, on `text` or the built-in news.

        A first look at a model should take minutes, so fewer documents are judged than a study judges.
        """
        limit = _positions(read_folder(host_folder(model)).config)
        window = LanguageOptions().window if limit is None else min(LanguageOptions().window, limit)
        return cls(
            LanguageOptions(
                model=model, text=text or NEWS, documents=16, validation_documents=4, window=window, stride=window // 2
            )
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer. Raises ConfigError: it has tokens that the model has no row for."""
        found, rows = load_tokenizer(host_folder(self.options.model)), self._rows
        if rows is not None:
            check_vocabulary(found, rows)
        return found

    @property
    def _rows(self) -> int | None:
        return _number(read_folder(host_folder(self.options.model)).config, "vocab_size")

    def companions(self) -> Mapping[str, Path]:
        """Return the model's configuration and the files of its tokenizer."""
        return companions(host_folder(self.options.model))

    @cached_property
    def opening(self) -> list[int]:
        """Tokens that every text starts with; none without the option `prefix`."""
        return [] if self.options.prefix is None else opening(self.tokenizer, self.options.prefix)

    # -- data ---------------------------------------------------------------------------------------------------
    def texts(self, split: Split) -> list[str]:
        """Return the documents of a split that hold a token to judge."""
        return [text for text, _ in self._documents(split)]

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield (inputs, labels): training windows [batch,T] ordered by `seed`, or the windows of documents [1,T]."""
        if split != "train":
            for _, ids in self._documents(split):
                yield from (_batch(each.ids[None], each.labels[None]) for each in self._windows(ids))
            return
        size = self._window - len(self.opening)
        kept = set(self.texts("train"))  # a view of the task may leave some out
        rows = packed(
            [ids for text, ids in self._documents("train") if text in kept], size, self.tokenizer.eos_token_id
        )
        if not len(rows):
            raise DataError(f"{self.options.text}: training documents do not fill a window of {self._window} tokens")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        for chosen in torch.split(rows[order], self.options.batch):
            labels = chosen.clone()
            labels[:, 0] = UNJUDGED
            yield _batch(*(started(part, first) for part, first in ((chosen, self.opening), (labels, self._unjudged))))

    def example_batch(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the beginning of the test documents, `prefill` tokens in one row."""
        ids = self._prompts(1)[0]
        return _batch(ids, ids)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of the next token over judged tokens."""
        logits, labels = self.forward(model, batch), self.target(batch)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=UNJUDGED)

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def notes(self) -> list[str]:
        """Return how texts were cut, and what was left out."""
        options, found = self.options, self._documents("test")
        tokens = sum(len(ids) - 1 for _, ids in found)
        return [
            f"{len(found)} documents of {options.text}, {tokens} tokens judged, windows of {self._window} tokens every "
            f"{options.stride}; the first token of a document is not judged{self._manner()}"
        ]

    def _manner(self) -> str:
        said = f"; each window starts with {len(self.opening)} tokens ({self.options.prefix!r})" if self.opening else ""
        return said + (f"; read {self.options.piece} tokens at a time" if self.options.piece else "")

    # -- judging ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each document, the sums over its judged tokens: nll in nats, tokens, right, and UTF-8 bytes."""
        was_training = model.training
        model.eval()
        sums = [self._judged(model, ids) for _, ids in self._documents(split)]
        model.train(was_training)
        nll, tokens, right, held, cached = (np.asarray(column) for column in zip(*sums, strict=True))
        sizes = np.asarray([self._judged_bytes(text) for text in self.texts(split)])
        found = {"nll": nll, "tokens": tokens, "right": right, "bytes": sizes}
        return Outcomes(found if self.options.piece is None else {**found, "kv_bytes": held, "kv_tokens": cached})

    def costs(self, outcomes: Outcomes) -> Mapping[str, float]:
        """Return the bytes of keys and values a token, as held where windows are read in pieces; else nothing."""
        if "kv_bytes" not in outcomes.columns:
            return {}
        held, tokens = (outcomes.columns[name].sum() for name in ("kv_bytes", "kv_tokens"))
        return {KEY_VALUES.name: float(held / tokens)}

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `prefill`, which reads a prompt, and `decode`, which writes tokens after it, one row each."""
        prompts = self._prompts(items)
        return {
            "prefill": Workload(prefill, prompts, self.options.prefill, "tokens"),
            "decode": Workload(decode(self.options.decode), prompts, self.options.decode, "tokens"),
        }

    def _judged(self, model: nn.Module, ids: Tensor) -> tuple[float, int, int, int, int]:
        """Return sums over a document: nll, tokens, those right, bytes of keys and values, and the tokens they hold."""
        parts = []
        for each in self._windows(ids):
            batch = to_device(_batch(each.ids[None], each.labels[None]), device_of(model))
            if self.options.piece is None:
                logits, held = self.forward(model, batch)[0], 0
            else:
                given = batch[0]["input_ids"]
                logits, held = read_in_pieces(model, given, self.options.piece, len(self.opening) + 1)
            parts.append((*judged(logits, self.target(batch)[0]), held, len(each.ids)))
        nll, tokens, right, bytes_held, cached = zip(*parts, strict=True)
        return sum(nll), sum(tokens), sum(right), sum(bytes_held), sum(cached)

    def _windows(self, ids: Tensor) -> Iterable[Window]:
        for each in windows(ids, self._window - len(self.opening), self.options.stride):
            yield Window(started(each.ids, self.opening), started(each.labels, self._unjudged))

    @cached_property
    def _unjudged(self) -> list[int]:
        return [UNJUDGED] * len(self.opening)

    @cached_property
    def _window(self) -> int:
        """Tokens in a window: as asked for, which must fit into the model's positions."""
        limit = _positions(read_folder(host_folder(self.options.model)).config)
        if limit is not None and self.options.window > limit:
            raise ConfigError(
                f"{self.name}: window {self.options.window} is longer than the {limit} positions of "
                f"{self.options.model}; set window={limit} or less"
            )
        if self.options.window - len(self.opening) <= self.options.stride:
            raise ConfigError(
                f"{self.name}: prefix takes {len(self.opening)} of the window's {self.options.window} tokens, which "
                f"leaves no overlap at stride {self.options.stride}; set a larger window or a smaller stride"
            )
        return self.options.window

    def _documents(self, split: Split) -> list[tuple[str, Tensor]]:
        """Return the texts of a split with their tokens, as many as the options say, those too short left out."""
        wanted = {
            "test": self.options.documents,
            "validation": self.options.validation_documents,
            "train": self.options.train_documents,
        }[split]
        if split not in self._read:
            found: list[tuple[str, Tensor]] = []
            for text in deal(self._texts, split):
                ids = torch.tensor(self._tokens(text)["input_ids"], dtype=torch.int64)
                if len(ids) > 1:
                    found.append((text, ids))
                if len(found) == wanted:
                    break
            self._check_documents(found, split)
            self._read[split] = found
        return self._read[split]

    def _check_documents(self, found: list[tuple[str, Tensor]], split: Split) -> None:
        if len(found) < 2:
            raise DataError(
                f"{self.options.text} gives {len(found)} {split} documents with a token to judge; at least two are "
                f"needed ({len(self._texts)} documents in all: of every five one tests and one validates)"
            )
        rows = self._rows
        largest = max(int(ids.max()) for _, ids in found)
        if rows is not None and largest >= rows:
            raise DataError(
                f"the tokenizer of {self.options.model} gives token {largest}, and the model has {rows} rows; they do "
                "not belong together"
            )

    @cached_property
    def _read(self) -> dict[str, list[tuple[str, Tensor]]]:
        return {}

    @cached_property
    def _texts(self) -> list[str]:
        return documents(self.options.text, self.options.unit)

    def _judged_bytes(self, text: str) -> int:
        """Return the UTF-8 bytes of a document after its first token, which is not judged."""
        encoded = self._tokens(text, return_offsets_mapping=self.tokenizer.is_fast)
        first = encoded["offset_mapping"][0][1] if self.tokenizer.is_fast else 0
        return len(text[first:].encode())

    def _tokens(self, text: str, **options: bool) -> Any:
        return self.tokenizer(text, verbose=False, add_special_tokens=self.options.prefix is None, **options)

    def _prompts(self, count: int) -> list[Tensor]:
        """Return token rows [1, prefill] from the test documents, one after another, repeated where they end."""
        ids = torch.cat([ids for _, ids in self._documents("test")])
        size = max(1, min(self.options.prefill, self._window) - len(self.opening))
        ids = ids.repeat(-(-count * size // len(ids)))
        return [started(row[None], self.opening) for row in ids[: count * size].view(count, size)]


def _positions(config: Mapping[str, Any]) -> int | None:
    return _number(config, *CONTEXT_NAMES)


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None)


def _batch(ids: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels
