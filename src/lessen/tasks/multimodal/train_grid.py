"""Train the model of the task `vision-language-grid`: `python -m lessen.tasks.multimodal.train_grid --help`.

First the tower learns to name each cell from its own token and the four cells of each 2 x 2 window from their mean,
with linear heads that are thrown away; then it rests, and projector and decoder learn to answer, told in three layers
where the last word of a question should look: at its words in layer 0, at what is asked for in layers 1 and 2. That
makes it learnable in minutes, and puts the look-up where deep models have it, after the first layers. Every picture is
new. Many questions share a picture: each sees it and itself alone, so that the answers are those of single prompts.
The state is saved every few steps; the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lessen.data.scenes import (
    CELL,
    COLOURS,
    FILM,
    FRAMES,
    GLYPHS,
    KINDS,
    LOCATION,
    SIDE,
    Asked,
    Scene,
    ask,
    draw_clip,
    draw_scene,
    paint,
    paint_clip,
)
from lessen.files import atomic_write, read_checked
from lessen.tasks.multimodal.grid_model import TOKENS, build_grid_model, prefix
from lessen.tasks.multimodal.packing import Guide, packed, packed_attention
from lessen.tasks.multimodal.words import IMAGE, encode
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings

CLASSES = 1 + len(COLOURS) * len(GLYPHS)
TOWER_STEPS, STEPS = 800, 2400
PICTURES, FILMS = 6, 2
UNTAUGHT = 987
"""Seed of lessons that only test."""
ASKED = 6 * LOCATION + 4 * ("count", "exists", "side")
ASKED_OF_FILMS = 12 * FILM
"""Kinds of the questions about one picture, and about one film."""
EVERY, COOLDOWN = 25, 250
"""Steps between checkpoints, and last steps in which the rate falls."""
LOOK_AT_WORDS, LOOK_AT_PICTURE, GUIDED = (0,), (1, 2), 0.5
"""Layers in which a question's last token is told where to look, and the weight of that."""
STILLS_FIRST = 600
"""Steps before the first film."""
RATE = 3e-3


class Lesson(NamedTuple):
    """Pictures and packed questions of one step."""

    inputs: dict[str, Any]
    columns: Tensor
    """int64 [questions], where each answer is read."""
    answers: Tensor
    """int64 [B, questions], the word that is right."""
    kinds: Tensor
    """int64 [B, questions], places in KINDS."""
    shown: Tensor
    """float32 [B, questions, P], shares of the tokens before the questions that each answer is read from."""


def lesson(step: int, seed: int, tokens: int = TOKENS, stills_first: int = 0) -> Lesson:
    """Return the batch of a step: pictures; later, at every third step films, at every twelfth clips of one blob.

    Args:
        tokens: visual tokens that a picture becomes.
        stills_first: steps before the first film.
    """
    draw, generator = random.Random(f"{seed} {step}"), torch.Generator().manual_seed(1_000_003 * seed + step)
    if step % 3 or step < stills_first:
        scenes = [draw_scene(draw) for _ in range(PICTURES)]
        asked = [_ask(scene, ASKED, draw) for scene in scenes]
        return taught(paint(torch.stack([scene.cells[0] for scene in scenes]), generator), asked, 1, tokens)
    if step % 12:
        scenes = [draw_scene(draw, FRAMES) for _ in range(FILMS)]
        asked = [_ask(scene, ASKED_OF_FILMS, draw) for scene in scenes]
        return taught(paint(torch.cat([scene.cells for scene in scenes]), generator), asked, FRAMES, tokens)
    clips = [draw_clip(draw) for _ in range(FILMS)]
    pixels = torch.cat([paint_clip(clip) for clip, _ in clips])
    pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
    return taught(pixels, [asked for _, asked in clips], FRAMES, tokens)


def _ask(scene: Scene, kinds: Sequence[str], draw: random.Random) -> list[Asked]:
    asked = [ask(scene, kind, draw) for kind in kinds]
    return sorted(asked, key=lambda one: len(one.words.split()))


def taught(pixels: Tensor, asked: Sequence[Sequence[Asked]], frames: int, tokens: int = TOKENS) -> Lesson:
    """Return pictures [B * frames, 3, 72, 72] and the questions about them as a batch."""
    inputs, columns = packed([[one.words for one in row] for row in asked], frames, tokens)
    answers = torch.tensor([[encode(one.answer)[0] for one in row] for row in asked])
    kinds = torch.tensor([[KINDS.index(one.kind) for one in row] for row in asked])
    return Lesson(inputs | {"pixel_values": pixels}, columns, answers, kinds, _shown(asked, frames, tokens))


def _shown(asked: Sequence[Sequence[Asked]], frames: int, tokens: int) -> Tensor:
    before = prefix(frames, tokens)
    starts = [at for at in range(1, len(before)) if before[at] == IMAGE != before[at - 1]]
    shown = torch.zeros(len(asked), len(asked[0]), len(before))
    if tokens == TOKENS:
        for row, questions in enumerate(asked):
            for number, one in enumerate(questions):
                for frame, down, across in one.cells:
                    shown[row, number, starts[frame] + down * SIDE + across] += 1 / len(one.cells)
    return shown


def answer_logits(model: Any, lesson: Lesson, guide: Guide | None = None) -> Tensor:
    """Return the logits of the word after each question, [B, questions, words]."""
    with packed_attention(model):
        hidden = model.model(**lesson.inputs, guide=guide, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[:, lesson.columns])
    return logits


def answer_loss(model: nn.Module, lesson: Lesson) -> Tensor:
    """Return the mean cross-entropy of the answers."""
    return F.cross_entropy(answer_logits(model, lesson).flatten(0, 1), lesson.answers.flatten())


def guided_loss(model: nn.Module, lesson: Lesson) -> Tensor:
    """Return it with the cross-entropy of where the last word of each question looks."""
    guide = Guide(lesson.shown, LOOK_AT_WORDS, LOOK_AT_PICTURE)
    answers = F.cross_entropy(answer_logits(model, lesson, guide).flatten(0, 1), lesson.answers.flatten())
    return answers + GUIDED * torch.stack(guide.losses).mean()


# -- the tower ---------------------------------------------------------------------------------------------------------
class Naming(nn.Module):
    """The tower with heads that name cells, rows and columns, and mix the colours of a patch."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.own, self.window = nn.Linear(width, CLASSES + 2 * SIDE + 12), nn.Linear(width, 4 * CLASSES)

    def losses(self, pixels: Tensor, cells: Tensor) -> Tensor:
        """Return the summed loss of pictures [B,3,72,72] with cells [B,12,12]."""
        tokens: Tensor = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        named, rows, columns, colours = self.own(tokens).split([CLASSES, SIDE, SIDE, 12], -1)
        place = torch.arange(SIDE * SIDE)
        wanted = F.avg_pool2d(pixels, CELL // 2).unfold(2, 2, 2).unfold(3, 2, 2)
        wanted = wanted.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), SIDE * SIDE, 12)
        grid = tokens.view(len(tokens), SIDE // 2, 2, SIDE // 2, 2, -1).mean((2, 4))
        windows = cells.view(-1, SIDE // 2, 2, SIDE // 2, 2).permute(0, 1, 3, 2, 4).flatten(3)
        return (
            F.cross_entropy(named.flatten(0, 1), cells.flatten(), weight=_weights())
            + F.cross_entropy(self.window(grid).view(-1, CLASSES), windows.flatten(), weight=_weights())
            + 0.2 * F.cross_entropy(rows.flatten(0, 1), (place // SIDE).repeat(len(tokens)))
            + 0.2 * F.cross_entropy(columns.flatten(0, 1), (place % SIDE).repeat(len(tokens)))
            + 2.0 * F.mse_loss(colours, wanted)
        )


def _weights() -> Tensor:
    weights = torch.ones(CLASSES)
    weights[0] = 0.05 * CLASSES / 10
    return weights


def train_tower(model: Any, steps: int, seed: int, checkpoint: Path | None) -> None:
    """Train the tower of `model` in place."""

    def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(EVERY * 4):
            name = f"tower {seed} {number} {step}"
            draw = random.Random(name)
            generator = torch.Generator().manual_seed(draw.randrange(2**40))
            cells = torch.stack([draw_scene(draw).cells[0] for _ in range(24)])
            if step % 8 == 0:  # white on grey, as clips are
                clips = torch.cat([paint_clip(draw_clip(draw)[0]) for _ in range(6)])
                yield clips + 0.05 * torch.randn(clips.shape, generator=generator), torch.zeros(24, SIDE, SIDE).long()
            else:
                yield paint(cells, generator), cells

    naming = Naming(model.model.vision_tower, model.config.vision_config.hidden_size)
    settings = FitSettings(
        steps=steps, steps_per_epoch=EVERY * 4, learning_rate=3e-3, optimizer="muon", warmup_steps=50, clip_norm=1.0,
        patience=None, keep="last", schedule="linear", minimum_learning_rate=0.0, decay_steps=steps // 2,
    )  # fmt: skip
    fit(
        naming,
        batches=batches,
        loss=lambda _, batch: naming.losses(*batch),
        validate=None,
        settings=settings,
        hooks=(Telling("tower"),),
        seed=seed,
        checkpoint=checkpoint,
    )


# -- the decoder -------------------------------------------------------------------------------------------------------
def train_answers(
    model: Any,
    steps: int,
    seed: int,
    checkpoint: Path | None = None,
    max_seconds: float | None = None,
    rate: float = RATE,
    tokens: int = TOKENS,
    stills_first: int = 0,
    guided: bool = False,
) -> None:
    """Train projector and decoder in place, the tower resting.

    Args:
        max_seconds: the training stops then, and its checkpoint goes on.
        tokens: that the projector makes of a picture.
    """
    fit_answers(
        model,
        lambda step: lesson(step, seed, tokens, stills_first),
        guided_loss if guided else answer_loss,
        steps,
        seed,
        rate,
        checkpoint,
        max_seconds,
        tokens,
    )


def fit_answers(
    model: Any,
    draw: Callable[[int], Lesson],
    loss: Callable[[nn.Module, Lesson], Tensor],
    steps: int,
    seed: int,
    rate: float = RATE,
    checkpoint: Path | None = None,
    max_seconds: float | None = None,
    told: int | None = None,
) -> None:
    """Train what does not belong to the tower in place, on the lesson that `draw` returns for each step.

    Args:
        told: tokens of a picture in lessons that are asked now and then, to tell right answers; None: none are.
    """
    model.model.vision_tower.requires_grad_(False)

    def batches(number: int) -> Iterator[Lesson]:
        for step in range(EVERY):
            yield draw((number - 1) * EVERY + step)

    settings = FitSettings(
        steps=steps, steps_per_epoch=EVERY, learning_rate=rate, optimizer="muon", warmup_steps=min(100, steps // 5),
        clip_norm=1.0,
        patience=None, keep="last", schedule="linear", minimum_learning_rate=0.0,
        decay_steps=max(1, min(COOLDOWN, steps // 4)),
        betas=(0.9, 0.98), max_seconds=max_seconds,
    )  # fmt: skip
    fit(
        model,
        batches=batches,
        loss=loss,
        validate=None,
        settings=settings,
        hooks=(Telling("answers", told),),
        seed=seed,
        checkpoint=checkpoint,
    )
    model.model.vision_tower.requires_grad_(True)


class Telling(Hook):
    """Tells the mean loss of every EVERY steps, and sometimes how many answers of each kind are right."""

    def __init__(self, what: str, tokens: int | None = None) -> None:
        self.what, self.tokens, self.began = what, tokens, time.perf_counter()
        self.losses: list[float] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Gather losses and tell their mean."""
        if "loss" not in values:
            return
        self.losses.append(values["loss"])
        if len(self.losses) == EVERY:
            seconds = time.perf_counter() - self.began
            print(f"{self.what} step {step} loss {sum(self.losses) / EVERY:.4f} {seconds:.0f} s", flush=True)
            self.losses = []

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Tell answers by kind at every eighth epoch."""
        if self.tokens is not None and epoch % 8 == 0:
            found = right_by_kind(model, 12, self.tokens)
            print("  ", "  ".join(f"{kind} {sum(right) / len(right):.2f}" for kind, right in found.items()), flush=True)


@torch.no_grad()
def right_by_kind(model: nn.Module, lessons: int, tokens: int = TOKENS) -> dict[str, list[float]]:
    """Return for each kind whether each answer is right, over lessons that are never taught."""
    right: dict[str, list[float]] = {}
    training = model.training
    model.eval()
    for step in range(lessons):
        one = lesson(step, UNTAUGHT, tokens)
        said = (answer_logits(model, one).argmax(-1) == one.answers).flatten().tolist()
        for good, kind in zip(said, one.kinds.flatten().tolist(), strict=True):
            right.setdefault(KINDS[kind], []).append(float(good))
    model.train(training)
    return dict(sorted(right.items()))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights in float16."""
    tensors = {name: t.half().contiguous() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    atomic_write(path, save_tensors(tensors))


def main() -> None:
    """Read the command line, train or go on, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="state of the training")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the decoder in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", type=float, default=None, help="stop after so many seconds of this decoder training")
    parser.add_argument("--weights", type=Path, default=None, help="where the weights go when all steps are done")
    parser.add_argument("--begin", type=Path, default=None, help="weights of an earlier training to begin with")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    model = build_grid_model()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.begin is None:
        train_tower(model, TOWER_STEPS, given.seed, given.folder / "tower.safetensors")
    else:
        tensors = load_tensors(read_checked(given.begin))
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    first = STILLS_FIRST if given.begin is None else 0
    state = given.folder / "answers.safetensors"
    train_answers(model, given.steps, given.seed, state, given.stop, stills_first=first, guided=True)
    for kind, right in right_by_kind(model, 48).items():
        print(f"{kind} {sum(right) / len(right):.3f} of {len(right)}", flush=True)
    if given.weights is not None:
        save_weights(model, given.weights)


if __name__ == "__main__":
    main()
