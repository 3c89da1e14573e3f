"""The task `agreement`: how far a compact host model answers as the uncompressed one does, on made-up inputs.

It is for models that come without data. It says nothing about quality: a model may agree on noise and fail on pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.folder import companions
from lessen.architectures.loading import build_host, host_folder, load_host
from lessen.architectures.samples import sample_inputs
from lessen.errors import NonFiniteError, TaskError
from lessen.log import SILENT, Log
from lessen.metrics import CosineAgreement, Outcomes, RelativeError
from lessen.task import TIMED, Split, Task, TaskOptions, Workload, call_model
from lessen.train.device import device_of, to_device

SEEDS = {"validation": 1, "test": 2}


class AgreementOptions(TaskOptions):
    """What a study may set under `task:`."""

    model: str = Field(description="Hugging Face folder or GGUF file")
    examples: int = Field(64, ge=2, le=1_000_000, description="inputs of the test split")
    length: int = Field(32, ge=1, le=1_000_000, description="tokens of an input, where the model reads text")
    batch: int = Field(8, ge=1, le=4096, description="inputs of a batch")
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; by default that of the file")


class AgreementTask(Task):
    """Compare outputs with those of the uncompressed model, input by input, on random tokens and noise."""

    name = "agreement"
    metrics = {"agreement": CosineAgreement(), "relative error": RelativeError()}
    columns = ("cosine", "error", "energy")
    provides = frozenset()
    pretrained = True
    Options = AgreementOptions

    def __init__(self, options: AgreementOptions) -> None:
        self.options = options

    def build(self) -> nn.Module:
        """Return the model's architecture with random weights."""
        model: nn.Module = build_host(self.options.model, self.options.dtype)
        return model

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - one trained reference
        """Return the model with its own weights, in eval mode."""
        model: nn.Module = load_host(self.options.model, self.options.dtype, log)
        return model

    def companions(self) -> Mapping[str, Path]:
        """Return the model's configuration, and the files of its tokenizer if it has one."""
        return companions(host_folder(self.options.model))

    def hosted(self, model: str) -> AgreementTask:
        """Return the same task for another model."""
        return type(self)(self.options.model_copy(update={"model": model}))

    def batches(self, split: Split, seed: int = 0) -> Iterator[dict[str, Tensor]]:  # noqa: ARG002 - nothing is trained
        """Yield made-up inputs by name. Raises TaskError for the train split: nothing is learned from noise."""
        if split not in SEEDS:
            raise TaskError(
                f"task {self.name!r} has no {split} split: its inputs are made up, and nothing is learned from them; "
                "give a task with data"
            )
        generator = torch.Generator().manual_seed(SEEDS[split])
        for first in range(0, self.options.examples, self.options.batch):
            rows = min(self.options.batch, self.options.examples - first)
            yield sample_inputs(self._original, rows, self.options.length, generator)

    def inputs(self, batch: Any) -> Any:
        """Return the batch: keyword arguments of the model."""
        return batch

    def target(self, batch: Any) -> Tensor:
        """Return what the uncompressed model answers."""
        with torch.no_grad():
            return self.forward(self._original, batch)

    def units_in(self, batch: Any) -> int:
        """Return the number of inputs in a batch."""
        return len(next(iter(batch.values())))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean squared difference to the uncompressed model's answers."""
        return (self.forward(model, batch) - self.target(batch).to(device_of(model))).float().square().mean()

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:  # noqa: ARG002 - noise does not repeat
        """Return `forward` on one batch."""
        batch = self.example_batch()
        return {"forward": Workload(self.forward, [batch], self.units_in(batch), "examples")}

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def notes(self) -> list[str]:
        """Return what the figures do not say."""
        return [
            f"agreement with the uncompressed model on {self.options.examples} made-up inputs; it says nothing about "
            "quality on data"
        ]

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Call `model` on a batch, where the model is."""
        return call_model(model, to_device(batch, device_of(model)))

    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each input, the cosine between both models' answers, their squared difference and its scale."""
        rows = [self._compared(self.forward(model, batch), self.target(batch)) for batch in self.batches(split)]
        cosine, error, energy = (np.concatenate(column) for column in zip(*rows, strict=True))
        return Outcomes({"cosine": cosine, "error": error, "energy": energy})

    @staticmethod
    def _compared(answer: Tensor, wanted: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if answer.shape != wanted.shape:
            raise TaskError(f"the model answers {list(answer.shape)}, the uncompressed one {list(wanted.shape)}")
        given, right = answer.cpu().double().flatten(1), wanted.cpu().double().flatten(1)
        if not bool(torch.isfinite(given).all()):
            raise NonFiniteError("the model gave NaN or infinity on made-up inputs")
        cosine = torch.cosine_similarity(given, right, dim=1)
        return cosine.numpy(), (given - right).square().sum(1).numpy(), right.square().sum(1).numpy()

    @cached_property
    def _original(self) -> Any:
        return self.reference()
