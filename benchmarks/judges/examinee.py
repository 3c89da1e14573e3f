"""A language model of a page: it reads letters, knows some of the questions that it was told, and errs on the rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.judges.pairs import Given
from lessen.data.questions import FOLDERS, KINDS, NO, YES


class Letters:
    """A tokenizer: one token a character, numbered as they come."""

    pad_token_id = eos_token_id = 0

    def __init__(self) -> None:
        self.known = ["\0"]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.known += [letter for letter in dict.fromkeys(text) if letter not in self.known]
        return {"input_ids": [self.known.index(letter) for letter in text]}

    def decode(self, ids: Tensor, **_: Any) -> str:
        return "".join(self.known[int(each)] for each in ids)


LETTERS = Letters()
VOCABULARY = 500


class Examinee(nn.Module):
    """Answers as it is told by the digest of a question, a share of them wrong; `silent` of them not at all."""

    def __init__(self, answers: dict[str, str], wrong: float, silent: float = 0.0, subject: str = "") -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(1))
        self.answers, self.wrong, self.silent, self.subject = answers, wrong, silent, subject

    def say(self, text: str) -> str:
        question = next((each for each in self.answers if each in text), "")
        right = self.answers.get(question, "A")
        draw = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) / 2**32
        if draw > 1 - self.silent:
            return "..."
        if draw >= self.wrong or (self.subject and self.subject not in text):
            return right
        other = {YES: NO, NO: YES}
        return other.get(right, chr(ord("A") + (ord(right[0]) - ord("A") + 1) % 4))

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        logits = torch.zeros(1, input_ids.shape[1], VOCABULARY)
        logits[0, -1, LETTERS(self.say(LETTERS.decode(input_ids[0]))[0])["input_ids"]] = 10.0
        return SimpleNamespace(logits=logits)

    def generate(self, input_ids: Tensor, **_: Any) -> Tensor:
        said = LETTERS(self.say(LETTERS.decode(input_ids[0])))["input_ids"]
        return torch.cat([input_ids, torch.tensor([said])], dim=1)


class Reading(Given):
    """A task that has a tokenizer and nothing else."""

    name = "reading"
    tokenizer = LETTERS


def examination(folder: Path, each: int = 60) -> dict[str, str]:
    """Write questions of three types in two subjects, in CFinBench's form; return the answer of each text."""
    answers = {}
    for kind in KINDS:
        place = folder / "val" / FOLDERS[kind]
        place.mkdir(parents=True, exist_ok=True)
        for subject in ("1-1", "2-1"):
            rows = []
            for at in range(each):
                text = f"[{subject}/{kind}/{at}]"
                letter = "ABCD"[at % 4]
                answer = {"single": letter, "multi": "AC" if at % 2 else "BD", "judgment": YES if at % 2 else NO}[kind]
                answers[text] = answer
                options = [] if kind == "judgment" else [f"{name}. {name.lower()}{at}" for name in "ABCD"]
                rows.append(json.dumps({"text": text, "OptionList": options, "Answer": answer}, ensure_ascii=False))
            (place / f"{subject}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return answers
