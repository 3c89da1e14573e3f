"""The task `language-answers`: what a causal language model writes after prompts, against the right answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.data.text import deal
from lessen.errors import ConfigError, DataError
from lessen.metrics import ExactMatch, Outcomes, RougeL, TokenF1
from lessen.metrics.answers import exact_match, rouge_l, token_f1
from lessen.task import Split, TaskOptions
from lessen.tasks.language.perplexity import LanguageOptions, LanguageTask
from lessen.tasks.language.windows import started
from lessen.train.device import device_of


class AnswersOptions(LanguageOptions):
    """What a study may set under `task:`."""

    prompts: str = Field(description='file of JSON lines {"prompt": text, "answer": text or list of texts}')
    prompt_count: int = Field(
        40, ge=2, le=1_000_000, description="prompts of the test split, and of the validation split"
    )
    max_new_tokens: int = Field(32, ge=1, le=100_000, description="tokens that are written at most")
    stop: str | None = Field("\n", description="text that ends an answer; null reads all that is written")
    chat: bool = Field(False, description="put prompts into the model's own chat template")


class AnswersTask(LanguageTask):
    """Write greedily after each prompt; the unit that is judged is a prompt.

    One of every five prompts tests and one validates. Methods calibrate and train on the texts of `text`, as in
    `language`. An answer is what stands before `stop`, outer spaces off.
    """

    name = "language-answers"
    metrics = {"exact match": ExactMatch(), "ROUGE-L": RougeL(), "F1 of words": TokenF1()}
    columns = ("right", "rouge_l", "f1", "written")
    Options: ClassVar[type[TaskOptions] | None] = AnswersOptions
    options: AnswersOptions

    def __init__(self, options: AnswersOptions) -> None:
        super().__init__(options)

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield training windows of `text` in the order of `seed`; or each prompt [1,T] with its first answer [1,A]."""
        if split == "train":
            yield from super().batches(split, seed)
            return
        for prompt, answers in self._asked(split):
            ids = self._encoded(prompt)
            answer = self.tokenizer(answers[0], add_special_tokens=False)["input_ids"]
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([answer], dtype=torch.int64)

    def fingerprint(self) -> str:
        """Return a digest of the prompts and all their answers, validation and test."""
        asked = [self._asked("validation"), self._asked("test")]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each prompt, whether the answer is right, its ROUGE-L and F1, and the tokens written."""
        was_training = model.training
        model.eval()
        rows = []
        for prompt, answers in self._asked(split):
            answer, written = self.answer(model, prompt)
            rows.append((exact_match(answer, answers), rouge_l(answer, answers), token_f1(answer, answers), written))
        model.train(was_training)
        columns = zip(self.columns, zip(*rows, strict=True), strict=True)
        return Outcomes({name: np.asarray(values) for name, values in columns})

    @torch.no_grad()
    def answer(self, model: Any, prompt: str) -> tuple[str, int]:
        """Return what the model writes after `prompt`, cut at `stop`, and the tokens that it wrote."""
        ids = self._encoded(prompt).to(device_of(model))
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
        )[0, ids.shape[1] :]
        text = str(self.tokenizer.decode(written, skip_special_tokens=True)).strip()
        if self.options.stop:
            text = text.partition(self.options.stop)[0].strip()
        return text, len(written)

    def notes(self) -> list[str]:
        """Return how answers were made and cut."""
        options = self.options
        end = f"cut at {options.stop!r}" if options.stop else "read whole"
        return [
            f"{len(self._asked('test'))} prompts of {options.prompts}, answers written greedily, at most "
            f"{options.max_new_tokens} tokens, {end}"
        ]

    def _encoded(self, prompt: str) -> Tensor:
        if not self.options.chat:
            return started(torch.tensor([self._tokens(prompt)["input_ids"]], dtype=torch.int64), self.opening)
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(f"{self.options.model} has no chat template; set chat=false")
        made = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return torch.as_tensor(made["input_ids"])

    def _asked(self, split: Split) -> list[tuple[str, list[str]]]:
        found = deal(self._prompts_read, split)[: self.options.prompt_count]
        if len(found) < 2:
            raise DataError(f"{self.options.prompts} gives {len(found)} {split} prompts; at least two are needed")
        return found

    @cached_property
    def _prompts_read(self) -> list[tuple[str, list[str]]]:
        path = Path(self.options.prompts)
        if not path.is_file():
            raise DataError(f"no file of prompts at {path}")
        found = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                found.append(_asked(line, f"{path}, line {number}"))
        return found


def _asked(line: bytes, where: str) -> tuple[str, list[str]]:
    """Return the prompt and the right answers of one JSON line. Raises DataError."""
    try:
        row = json.loads(line)
        prompt, answer = row["prompt"], row["answer"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'{where}: not an object with "prompt" and "answer" ({error})') from error
    answers = answer if isinstance(answer, list) else [answer]
    if not isinstance(prompt, str) or not prompt or not answers or not all(isinstance(one, str) for one in answers):
        raise DataError(f"{where}: the prompt must be a text, and the answer a text or a list of texts")
    return prompt, answers
