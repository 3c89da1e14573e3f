"""Questions about videos that one frame cannot answer: TempCompass's files and matching rules, and clips drawn here.

<root>/questions/<task>.json       {video: {aspect: [{question, answer}, ...]}}       task: multi-choice, yes_no, ...

Videos of one root show the same content played backwards, at another speed, or in another order (Liu et al., arXiv
2403.00476): the questions are the same, the answers are not. The rules read an answer without a grader; what they
cannot read counts as wrong and is told apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lessen.errors import DataError

TASKS = ("multi-choice", "yes_no", "caption_matching")
ASPECTS = ("action", "direction", "speed", "order", "attribute_change")
SUFFIX = {
    "multi-choice": "Please directly give the best option:",
    "yes_no": "Please answer yes or no:",
    "caption_matching": "Please directly give the best option:",
}
END = "</s>"
FRAMES, SIDE = 8, 16
PACE, MIDDLE = 1.0, (4.5, 11.5)
"""Columns a frame that a fast blob goes, and where it is in the middle of a drawn clip."""


@dataclass(frozen=True)
class VideoQuestion:
    """One question about one video."""

    task: str
    aspect: str
    video: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        return f"{self.question}\n{SUFFIX[self.task]}"

    @property
    def root(self) -> str:
        """Name shared by a video and its changed copies."""
        return self.video.split("_")[0]


def read_video_questions(root: Path | str, most: int | None = None) -> list[VideoQuestion]:
    """Return the questions of TempCompass's files, at most so many videos a task.

    Raises:
        DataError: no file of questions, or one that is none.
    """
    found = []
    for task in TASKS:
        path = Path(root) / "questions" / f"{task}.json"
        if not path.is_file():
            continue
        try:
            videos = json.loads(path.read_text(encoding="utf-8"))
            for video in list(videos)[:most]:
                for aspect, items in videos[video].items():
                    found += [VideoQuestion(task, aspect, video, str(i["question"]), str(i["answer"])) for i in items]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no file of questions about videos: {error}") from error
    if not found:
        raise DataError(f"{root} holds no questions/<task>.json; tasks: {', '.join(TASKS)}")
    return found


# -- matching ----------------------------------------------------------------------------------------------------------
def match(item: VideoQuestion, written: str) -> bool | None:
    """Return whether an answer is right by the rules of its task, or None where they cannot read it."""
    said = written.replace(END, "").strip()
    if item.task == "yes_no":
        low, wanted = said.lower(), item.answer.strip().lower()
        known = next((word for word in ("yes", "no") if low.startswith(word)), None)
        return None if known is None else wanted.startswith(known)
    if item.task == "multi-choice":
        return _option(said, item.answer.strip())
    return _caption(said, item)


def _option(said: str, answer: str) -> bool | None:
    if said == answer:
        return True
    letter = said[:1]
    if letter and letter in "ABCD" and (len(said) == 1 or said[1] in ".)"):
        return letter == answer[:1]
    return None


def _caption(said: str, item: VideoQuestion) -> bool | None:
    """Compare with a whole option line, its sentence, or its label with or without the word before it."""
    options = [
        line.strip()
        for line in item.question.splitlines()
        if re.match(r"(Caption|Option|Sentence) \w+[:.)]", line.strip())
    ]
    told = said.replace(".", "").strip()
    for line in options:
        label, _, sentence = line.partition(":")
        name = label.partition(" ")[2]
        forms = {line, sentence.strip(), label, name, f"{name}) {sentence.strip()}"}
        if told in {form.replace(".", "").strip() for form in forms} or told.partition(") ")[2] == _plain(sentence):
            return line.replace(".", "") == item.answer.strip().replace(".", "")
    return None


def _plain(sentence: str) -> str:
    return sentence.replace(".", "").strip() or "\0"


# -- clips drawn here --------------------------------------------------------------------------------------------------
def drawn_clips(count: int, seed: int = 0) -> tuple[dict[str, Tensor], list[VideoQuestion]]:
    """Return clips float32 [8, 1, 16, 16] by name, and questions on shape, direction and speed.

    Each clip has a copy played backwards and one at half the speed: the same wording, other answers. The shape is told
    by any frame, direction by their order alone, speed by how far it goes. Where the blob is in one frame tells next to
    nothing, since all copies pass the same place, which is drawn, in the middle of the clip.
    """
    generator = torch.Generator().manual_seed(seed)
    clips, found = {}, []
    for at in range(count):
        shape = ("square", "bar")[at % 2]
        place = int(torch.randint(4, 12, (1,), generator=generator))
        rightward, flip = (torch.rand(2, generator=generator) < 0.5).tolist()
        middle = float(torch.empty(1).uniform_(*MIDDLE, generator=generator))
        for suffix, forward, pace in (
            ("", rightward, PACE),
            ("_reverse", not rightward, PACE),
            ("_concat_0", rightward, PACE / 2),
        ):
            moved = [middle + pace * (frame - (FRAMES - 1) / 2) for frame in range(FRAMES)]
            frames = [clip_frame(shape, place, x) for x in (moved if forward else moved[::-1])]
            name = f"{at}{suffix}"
            clips[name] = torch.stack(frames)
            found += clip_questions(name, shape, forward, pace == PACE, flip)
    return clips, found


def clip_questions(name: str, shape: str, rightward: bool, fast: bool, flip: bool) -> list[VideoQuestion]:
    """Return the questions on shape, direction and speed of one clip; `flip` names the other option first."""
    found = []
    words = {"action": ("square", "bar", shape), "direction": ("right", "left", "right" if rightward else "left"),
             "speed": ("fast", "slow", "fast" if fast else "slow")}  # fmt: skip
    for aspect, (one, other, answer) in words.items():
        found += _asked(name, aspect, (other, one) if flip else (one, other), answer)
    return found


def clip_frame(shape: str, place: float, x: float) -> Tensor:
    """Return one frame float32 [1, 16, 16] of a "square" or "bar" whose middle is at row `place` and column `x`."""
    down, across = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    reach = (1.5, 1.5) if shape == "square" else (4.0, 0.75)
    inside = ((down - place).abs() < reach[0]) & ((across - x).abs() < reach[1])
    return inside.float()[None]


def _asked(video: str, aspect: str, options: Sequence[str], answer: str) -> list[VideoQuestion]:
    lines = [f"{letter}. {word}" for letter, word in zip("AB", options, strict=True)]
    right = next(line for line in lines if line.endswith(answer))
    stem = {"action": "Which shape moves?", "direction": "Where does it go?", "speed": "How does it move?"}[aspect]
    yes = VideoQuestion("yes_no", aspect, video, f"{stem} Is it {options[0]}?", "yes" if options[0] == answer else "no")
    return [VideoQuestion("multi-choice", aspect, video, "\n".join([stem, *lines]), right), yes]
