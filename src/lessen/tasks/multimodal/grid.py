"""The task `vision-language-grid`: questions about drawn pictures and films, for a small LLaVA that comes trained.

Where (what, colour, row, column) needs the one token in 144 that shows the place; count, exists and side need several;
frame, order and motion need the pictures of a film, 576 tokens. A token that is left out is missed, as it is in charts,
documents and street scenes; questions that any quarter of the tokens answers are not asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from lessen.costs import KEY_VALUES
from lessen.data.clips import SIDE as CLIP_SIDE
from lessen.data.scenes import (
    FILM,
    FRAMES,
    KINDS,
    LOCATION,
    MOTION,
    STILL,
    Asked,
    ask,
    draw_clip,
    draw_scene,
    paint,
    paint_clip,
)
from lessen.errors import InputError, TaskError
from lessen.files import read_checked
from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY, Floats, Metric, Outcomes
from lessen.metrics.base import RatioMetric
from lessen.metrics.outcomes import GIVEN
from lessen.task import TIMED, Split, Task, TaskOptions, Workload
from lessen.tasks.multimodal.grid_model import build_grid_model, prompts
from lessen.tasks.multimodal.words import decode, encode
from lessen.train.device import as_rows, device_of, to_device
from lessen.train.settings import FitSettings

WEIGHTS = Path(__file__).with_name("grid_vlm.safetensors")
CACHES = ("cache", "past_key_values")
FILMS_A_BATCH = 5


class RightOfKind(RatioMetric):
    """Share of right answers among the questions of one kind: columns score, target and kind (place in `KINDS`)."""

    name, title = "right-of-kind", "right answers of one kind"
    reads = ("score", "target", "kind")

    def __init__(self, place: int) -> None:
        """Judge the questions whose kind stands at `place` of `scenes.KINDS`."""
        self.places: tuple[int, ...] = (place,)
        self.name, self.title = f"right-of-kind@{place}", f"right answers, {KINDS[place]}"

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return right answers and questions of the kind."""
        own = np.isin(outcomes["kind"], self.places)
        right = outcomes["score"].argmax(1) == outcomes["target"]
        return np.stack([(right & own).astype(np.float64), own.astype(np.float64)], axis=1)


class RightOfLocation(RightOfKind):
    """Share of right answers among the questions about a place: what, colour, row and column."""

    name, title = "right-of-location", "right answers about a place"

    def __init__(self) -> None:
        """Judge the four kinds together."""
        self.places = tuple(KINDS.index(kind) for kind in LOCATION)


class GridBatch(NamedTuple):
    """Prompts with their pictures."""

    inputs: dict[str, Any]
    """input_ids and attention_mask int64 [B,N], padded on the left; pixel_values float32 [B * frames, 3, 72, 72]; only
    the logits of the last token are wanted."""
    target: Tensor
    """int64 [B], the word that answers."""
    kind: Tensor
    """int64 [B], place in `scenes.KINDS`."""
    picture: Tensor
    """int64 [B], number of the picture or film, which questions share."""


class GridOptions(TaskOptions):
    """What a study may set under `task:`."""

    about: Literal["stills", "films", "both"] = Field("both", description="pictures, films of four pictures, or both")
    questions: int = Field(150, ge=10, le=100_000, description="of each kind in the test split; validation: a third")
    train_pictures: int = Field(200, ge=10, le=10**6, description="seven questions each, when a method trains")
    batch: int = Field(15, ge=1, le=1024, description="prompts of a batch; of films a third as many")
    timing_batch: int = Field(4, ge=1, le=256, description="prompts of the batch that is timed")
    seed: int = Field(0, ge=0, le=2**31, description="of the pictures")


class GridTask(Task):
    """Answer with one word what a picture of glyphs on a 12 x 12 grid, or a film of four, is asked."""

    name = "vision-language-grid"
    metrics: Mapping[str, Metric] = {"right": ACCURACY}
    columns = ("score", "target", "kind", "kv_bytes", "kv_tokens", "group")
    settings = FitSettings(epochs=1, learning_rate=3e-4, optimizer="adamw", clip_norm=1.0)
    Options = GridOptions
    pretrained = True

    def __init__(self, options: GridOptions | None = None) -> None:
        self.options = options or GridOptions()
        asked = {"stills": STILL, "films": (*FILM, MOTION), "both": KINDS}[self.options.about]
        location = {} if self.options.about == "films" else {"location": RightOfLocation()}
        self.metrics = {"right": ACCURACY, **location, **{kind: RightOfKind(KINDS.index(kind)) for kind in asked}}

    def build(self) -> nn.Module:
        """Return the untrained model. Raises MissingExtraError without transformers."""
        return build_grid_model()

    @classmethod
    def architecture(cls, options: Any) -> Any:  # noqa: ARG003 - one model for all options
        """Return what builds the untrained model."""
        return build_grid_model

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - one trained reference
        """Return the model with the weights that come with the package, float32, in eval mode."""
        model = self.build()
        tensors = load_tensors(read_checked(WEIGHTS))
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
        return model.eval()

    # -- data ----------------------------------------------------------------------------------------------------------
    def batches(self, split: Split, seed: int = 0) -> Iterator[GridBatch]:
        """Yield prompts of a split, stills first; the train split draws other pictures for each `seed`."""
        size = self.options.batch
        if split == "train":
            yield from self._stills(f"train {seed}", self.options.train_pictures, size)
            return
        if split not in ("validation", "test"):
            raise TaskError(f"task {self.name!r} has no split {split!r}; allowed: train, validation, test")
        count = self.options.questions if split == "test" else max(4, self.options.questions // 3)
        if self.options.about != "films":
            yield from self._stills(split, count, size)
        if self.options.about != "stills":
            yield from self._films(split, count, max(1, size // 3))

    def _stills(self, name: str, count: int, size: int) -> Iterator[GridBatch]:
        pictures, asked = [], []
        for number in range(count):
            draw = random.Random(f"{self.options.seed} {name} {number}")
            scene = draw_scene(draw)
            pictures.append(scene.cells)
            asked += [(number, ask(scene, kind, draw)) for kind in STILL]
        pixels = paint(torch.stack(pictures), _generator(self.options.seed, name))
        yield from _in_batches(pixels, asked, size)

    def _films(self, name: str, count: int, size: int) -> Iterator[GridBatch]:
        pixels, asked = [], []
        generator = _generator(self.options.seed, f"{name} films")
        for number in range(-(-count // 2)):
            draw = random.Random(f"{self.options.seed} {name} film {number}")
            scene = draw_scene(draw, FRAMES)
            pixels.append(paint(scene.cells, generator))
            asked += [(number, ask(scene, kind, draw)) for kind in FILM for _ in range(2)]
        for number in range(len(pixels), len(pixels) + -(-count // 6)):
            draw = random.Random(f"{self.options.seed} {name} clip {number}")
            clip, about = draw_clip(draw)
            pixels.append(paint_clip(clip))
            asked += [(number, one) for one in about]
        yield from _in_batches(torch.stack(pixels), asked, size)

    def example_batch(self) -> GridBatch:
        """Return the first `timing_batch` prompts of the test split."""
        return next(iter(self._timed()))

    def _timed(self) -> Iterator[GridBatch]:
        count = self.options.timing_batch
        make = self._films if self.options.about == "films" else self._stills
        yield from make("test", 6 * count, count)

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `prefill`: reading prompts until the first word is known."""
        batches = [batch for batch, _ in zip(self._timed(), range(items), strict=False)]
        return {"prefill": Workload(self.forward, batches, self.options.timing_batch, "prompts")}

    # -- model ---------------------------------------------------------------------------------------------------------
    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits of the word after each prompt, [B, words]."""
        return self._read(model, batch)[0]

    def _read(self, model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        done = model(**to_device(batch[0], device_of(model)), use_cache=not model.training)
        return done.logits[:, -1], next((done[name] for name in CACHES if done.get(name) is not None), None)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy of the answers."""
        return F.cross_entropy(self.forward(model, batch).float(), batch[1].to(device_of(model)))

    def groups(self, split: Split) -> np.ndarray:
        """Return the picture of each question."""
        return np.concatenate([batch.picture.numpy() for batch in self.batches(split)])

    def slices(self, split: Split) -> Mapping[str, np.ndarray]:
        """Return the kind of each question."""
        kinds = np.concatenate([batch.kind.numpy() for batch in self.batches(split)])
        return {"kind": np.asarray(KINDS)[kinds]}

    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return logits, answers and kinds, and the bytes that the cache holds after each prompt.

        Raises:
            NonFiniteError: the model produced NaN or infinity.
        """
        model.eval()
        scores, rows = [], []
        for batch in self.batches(split):
            logits, cache = self._read(model, batch)
            scores.append(logits.float())
            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / len(logits)
            tokens = batch.inputs["input_ids"].shape[1]
            rows.append(
                np.stack([batch.target, batch.kind, batch.picture, *np.full((2, len(logits)), [[held], [tokens]])])
            )
        target, kind, picture, held, tokens = np.concatenate(rows, 1)
        joined = as_rows(scores, f"the {split} scores of task {self.name!r}").numpy()
        columns = {
            "score": joined, "target": target.astype(np.int64), "kind": kind.astype(np.int64), "kv_bytes": held,
            "kv_tokens": tokens,
        }  # fmt: skip
        return Outcomes(columns, picture.astype(np.int64), given=GIVEN | {"kind", "kv_tokens"})

    def costs(self, outcomes: Outcomes) -> Mapping[str, float]:
        """Return bytes of keys and values for each token of the prompts, as they were before any was left out."""
        return {KEY_VALUES.name: float(outcomes["kv_bytes"].sum() / outcomes["kv_tokens"].sum())}

    @torch.no_grad()
    def answer_video(self, model: nn.Module, video: Any, prompt: str) -> str:
        """Return the word that answers a prompt about a clip float32 [frames, 1, 16, 16] in 0..1.

        Raises:
            InputError: no clip of this form: no frame or only one, another size, or a file.
        """
        if not isinstance(video, Tensor):
            raise InputError(f"task {self.name!r} reads clips as tensors [frames, 1, 16, 16], not {video}")
        if video.dim() != 4 or video.shape[1:] != (1, CLIP_SIDE, CLIP_SIDE) or len(video) < 2:
            raise InputError(
                f"task {self.name!r} reads clips [frames, 1, {CLIP_SIDE}, {CLIP_SIDE}] of two frames or more, not "
                f"{list(video.shape)}"
            )
        inputs = prompts([prompt], FRAMES) | {"pixel_values": paint_clip(video), "logits_to_keep": 1}
        logits = self._read(model, (inputs,))[0]
        return decode([int(logits[0].argmax())])

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def notes(self) -> list[str]:
        """Return what the figures do not say."""
        return ["pictures are drawn here and simple; what a reduction costs on photographs is not told by them"]


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(f"{seed} {name} paint").randrange(2**40))


def _in_batches(pixels: Tensor, asked: list[tuple[int, Asked]], size: int) -> Iterator[GridBatch]:
    """Yield the questions (number of the picture, question) about pictures [n, frames, 3, 72, 72]."""
    for first in range(0, len(asked), size):
        some = asked[first : first + size]
        numbers = torch.tensor([number for number, _ in some])
        inputs: dict[str, Any] = prompts([one.words for _, one in some], pixels.shape[1])
        inputs |= {"pixel_values": pixels[numbers].flatten(0, 1), "logits_to_keep": 1}
        target = torch.tensor([encode(one.answer)[0] for _, one in some])
        yield GridBatch(inputs, target, torch.tensor([KINDS.index(one.kind) for _, one in some]), numbers)
