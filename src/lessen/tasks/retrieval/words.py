"""The task `words`: find the pictures that a word is written in, without reading them one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import MissingExtraError
from lessen.metrics import Outcomes
from lessen.metrics.retrieval import MeanAveragePrecision, ranked
from lessen.retrieval.spotting import FocusedHead
from lessen.task import Split, Task, TaskOptions
from lessen.train.settings import FitSettings

LETTERS, LONGEST = "aeimnorstu", 5
HIGH, WIDE, CELL, WIDTH = 24, 72, 8, 48
NEAR, SHARPNESS, HARD = 5, 20.0, 3


class WordsOptions(TaskOptions):
    """What a study may set under `task:`."""

    words: int = Field(80, ge=4, le=10_000, description="words; every second is another with one letter changed")
    examples: int = Field(1600, ge=16, le=10**6, description="train pictures; test and validation: a quarter each")
    focus: float = Field(1.0, ge=0, le=100, description="weight of the term that says where text is")
    distracted: float = Field(1.0, ge=0, le=100, description="weight of the term of words an edit away")
    seed: int = Field(0, ge=0, le=2**31, description="of words and pictures")


class SpottingNet(nn.Module):
    """pictures [B, 1, 24, 72] --trunk--> [B, 48, 3, 9] --head--> [B, 48];  letters [W, 5] --text--> [W, 48]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, WIDTH)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head: nn.Module = FocusedHead(WIDTH, HIGH // CELL, WIDE // CELL)
        self.text = nn.Sequential(nn.Linear(LONGEST * (len(LETTERS) + 1), 128), nn.ReLU(), nn.Linear(128, WIDTH))

    def written(self, letters: Tensor) -> Tensor:
        """Return the vectors of words, of length 1, [W, 48], for letters int64 [W, 5]."""
        shown = F.one_hot(letters, len(LETTERS) + 1).flatten(1).to(next(self.text.parameters()).dtype)
        return F.normalize(self.text(shown), dim=1)

    def seen(self, pictures: Tensor) -> Tensor:
        """Return the vectors of pictures, of length 1, [B, 48]."""
        return F.normalize(self.head(self.trunk(pictures)), dim=1)

    def forward(self, pictures: Tensor, letters: Tensor) -> Tensor:
        """Return the likeness of each picture and each word, [B, W]."""
        return SHARPNESS * self.seen(pictures) @ self.written(letters).t()


class WordsTask(Task):
    """Drawn words; batches are ((pictures, letters of all words), number of the word int64 [B], masks [B, 27]).

    The unit is a word of the test split, judged by the average precision of all test pictures. All words are seen in
    training, no picture is.
    """

    name = "words"
    metrics = {"map": MeanAveragePrecision()}
    columns = ("map",)
    settings = FitSettings(epochs=20, learning_rate=3e-3, patience=20)
    Options = WordsOptions

    def __init__(self, options: WordsOptions | None = None) -> None:
        self.options = options or WordsOptions()
        generator = np.random.default_rng(self.options.seed)
        self.words = _words(self.options.words, generator)
        self.letters = torch.tensor([[(LETTERS.find(c) + 1) for c in word.ljust(LONGEST)] for word in self.words])
        counts = self.options.examples, self.options.examples // 4, self.options.examples // 4
        self._splits = {
            split: _drawn(self.words, count, generator)
            for split, count in zip(("train", "validation", "test"), counts, strict=True)
        }
        far = torch.tensor([[_edits(one, other) for other in self.words] for one in self.words])
        least = far.topk(min(NEAR, len(self.words)), dim=1, largest=False)
        self._near, self._likeness = least.indices, (1 / (least.values + 0.1)).softmax(dim=1)

    def build(self) -> nn.Module:
        """Return the untrained network."""
        return SpottingNet()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield batches of 64; the train split is shuffled by `seed`."""
        pictures, numbers, masks = self._splits[split]
        order = torch.arange(len(numbers))
        if split == "train":
            order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, 64):
            yield (pictures[rows], self.letters), numbers[rows], masks[rows]

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the contrastive loss both ways, plus where text is, plus likeness to words an edit away."""
        (pictures, letters), numbers, masks = batch
        maps = model.trunk(pictures)
        seen, written = F.normalize(model.head(maps), dim=1), model.written(letters)
        likeness = SHARPNESS * seen @ written.t()
        here, places = numbers.unique(return_inverse=True)
        back = likeness.t()[here].log_softmax(dim=1)
        own = F.one_hot(places, len(here)).t().to(back.dtype)
        total: Tensor = F.cross_entropy(likeness, numbers) - ((back * own).sum(dim=1) / own.sum(dim=1)).mean()
        if self.options.distracted:
            near = likeness.gather(1, self._near.to(numbers.device)[numbers]).log_softmax(dim=1)
            wanted = self._likeness.to(numbers.device)[numbers]
            total = total + self.options.distracted * F.kl_div(near, wanted, reduction="batchmean")
        if self.options.focus:
            total = total + self.options.focus * balanced(model.head.scores(maps), masks)
        return total

    @torch.no_grad()
    def outcomes(self, model: Any, split: Split = "test") -> Outcomes:
        """Return, for each word of a split, the average precision of all its pictures."""
        was_training = model.training
        model.eval()
        made = torch.cat([self.forward(model, batch).cpu() for batch in self.batches(split)])
        model.train(was_training)
        numbers = self._splits[split][1]
        grades = (torch.arange(len(self.words))[:, None] == numbers[None]).double().numpy()
        there = grades.sum(axis=1) > 0
        return Outcomes({"map": ranked(made.t().numpy()[there], grades[there])["map"]})

    def example_batch(self) -> Any:
        """Return the first eight test pictures with all words."""
        (pictures, letters), numbers, masks = next(islice(self.batches("test"), 1))
        return (pictures[:8], letters), numbers[:8], masks[:8]

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


def balanced(scores: Tensor, masks: Tensor) -> Tensor:
    """Return the cross-entropy of cells with text and, of those without, of the three times as many that err most."""
    each = F.binary_cross_entropy_with_logits(scores, masks, reduction="none")
    positive, negative = each[masks > 0.5], each[masks <= 0.5]
    hardest = negative.topk(min(len(negative), HARD * max(1, len(positive)))).values
    return (positive.sum() + hardest.sum()) / max(1, len(positive) + len(hardest))


def _words(count: int, generator: np.random.Generator) -> list[str]:
    """Return different words of three to five letters; every second is the one before with one letter changed."""
    found: dict[str, None] = {}
    while len(found) < count:
        if len(found) % 2 == 0:
            word = "".join(generator.choice(list(LETTERS), int(generator.integers(3, LONGEST + 1))))
        else:
            word = next(reversed(found))
            place = int(generator.integers(len(word)))
            word = word[:place] + str(generator.choice(list(LETTERS))) + word[place + 1 :]
        found.setdefault(word)
    return list(found)


def _drawn(words: list[str], count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures [n, 1, 24, 72], the number of the word in each, and which cells hold text, [n, 27]."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingExtraError("codecs", "pillow", "drawing words") from error
    font = ImageFont.load_default()
    numbers = generator.permutation(np.arange(count) % len(words))
    pictures, masks = np.zeros((count, HIGH, WIDE), np.float32), np.zeros((count, HIGH, WIDE), np.float32)
    for row, number in enumerate(numbers):
        drawn = Image.new("L", (WIDE, HIGH))
        pen = ImageDraw.Draw(drawn)
        box = pen.textbbox((0, 0), words[number], font=font)
        left = int(generator.integers(0, max(1, WIDE - int(box[2]))))
        top = int(generator.integers(-int(box[1]), max(1 - int(box[1]), HIGH - int(box[3]))))
        pen.text((left, top), words[number], fill=255, font=font)
        masks[row, max(0, top + int(box[1])) : top + int(box[3]), left : left + int(box[2])] = 1
        ink = np.asarray(drawn, np.float32) / 255 * generator.uniform(0.5, 1.0)
        clutter = Image.new("L", (WIDE, HIGH))
        brush = ImageDraw.Draw(clutter)
        for _ in range(3):
            ends = [int(generator.integers(limit)) for limit in (WIDE, HIGH, WIDE, HIGH)]
            brush.line(ends, fill=int(generator.integers(60, 160)))
        noise = 0.1 * generator.standard_normal((HIGH, WIDE))
        pictures[row] = np.maximum(ink, np.asarray(clutter, np.float32) / 255 * (masks[row] == 0)) + noise
    cells = F.avg_pool2d(torch.from_numpy(masks)[:, None], CELL).flatten(1)
    return torch.from_numpy(pictures)[:, None], torch.from_numpy(numbers), (cells > 0.25).float()


def _edits(one: str, other: str) -> int:
    """Return the letters that must be put in, left out or changed to make one word of the other."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row = row, [number]
        for place, own in enumerate(other, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (letter != own)))
    return row[-1]
