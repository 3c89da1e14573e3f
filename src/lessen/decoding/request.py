"""One sequence being decoded: choosing each token as plain decoding does, and stopping where it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lessen.decoding.policy import Copier

Processor = Callable[[Tensor, Tensor], Tensor]
Criterion = Callable[[Tensor, Any], Any]


@dataclass
class Rules:
    """How tokens are chosen and when decoding stops; `processors` get ids (1, length) and scores (1, vocabulary)."""

    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    sample: bool = False
    processors: Sequence[Processor] = ()
    stop_strings: Criterion | None = None
    criteria: Sequence[Criterion] = ()
    deadline: float | None = None
    clock: Callable[[], float] | None = None
    generator: torch.Generator | None = None
    end: str = "length"
    """What `max_new_tokens` is bounded by: the length asked for, or the model's context."""


@dataclass
class Counts:
    """What happened while one sequence was decoded."""

    passes: int = 0
    rows: int = 0
    drafted: int = 0
    accepted: int = 0
    assistant_drafted: int = 0
    assistant_accepted: int = 0


@dataclass
class Request:
    """A prompt, the tokens emitted after it, its cache, and what it can copy.

    Every token is chosen from logits whose whole prefix was emitted before, one position after the other, so logits
    processors and stopping criteria are called as in plain decoding: once for each emitted token, with the true
    prefix. Drafted tokens are proposals of probability one, hence keeping a drawn token while it equals the draft,
    and stopping at the first that differs, leaves the law of the output unchanged.
    """

    prompt: list[int]
    rules: Rules
    copier: Copier | None
    cache: Any
    on_token: Callable[[int], None] | None = None
    shown: Sequence[int] | None = None
    """The prompt as processors and criteria see it, padding included; the prompt itself where there is none."""
    finish: str | None = None
    tokens: list[int] = field(init=False)
    counts: Counts = field(default_factory=Counts)
    _ids: Tensor | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        if self.rules.processors or self.rules.criteria or self.rules.stop_strings:
            self._ids = torch.tensor([[*(self.shown or self.prompt), *[0] * self.rules.max_new_tokens]])

    @property
    def emitted(self) -> list[int]:
        """Tokens chosen so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def left(self) -> int:
        """Tokens that may still be emitted."""
        return self.rules.max_new_tokens - (len(self.tokens) - len(self.prompt))

    def take(self, logits: Tensor, best: Sequence[int], draft: Sequence[int]) -> list[int]:
        """Emit tokens from logits (1 + draft, vocabulary) whose arg-max ids are `best`; return those emitted."""
        emitted: list[int] = []
        for step in range(len(draft) + 1):
            token = self._choose(logits[step : step + 1], best[step])
            emitted.append(token)
            self.append(token)
            if self.finish is not None or step == len(draft) or token != draft[step]:
                break
        if self.copier is not None:
            self.copier.observe(emitted)
        return emitted

    def _choose(self, logits: Tensor, best: int) -> int:
        rules = self.rules
        if not rules.processors and not rules.sample:
            return best
        scores = logits.to("cpu", copy=True)
        for processor in rules.processors:
            scores = processor(self._prefix(), scores)
        if not rules.sample:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=rules.generator))

    def _prefix(self) -> Tensor:
        if self._ids is None:
            raise RuntimeError("token ids are kept only for processors and criteria")
        return self._ids[:, : self._shown_length]

    @property
    def _shown_length(self) -> int:
        return len(self.shown or self.prompt) + len(self.tokens) - len(self.prompt)

    def append(self, token: int) -> None:
        """Emit one token and say in `finish` whether, and why, the text ends with it."""
        if self._ids is not None:
            self._ids[0, self._shown_length] = token
        self.tokens.append(token)
        if self.on_token is not None:
            self.on_token(token)
        self.finish = self._why_finished(token)

    def _why_finished(self, token: int) -> str | None:
        rules = self.rules
        if token in rules.eos:
            return "eos"
        if rules.stop_strings is not None and bool(rules.stop_strings(self._prefix(), None)):
            return "stop string"
        for criterion in rules.criteria:
            if bool(torch.as_tensor(criterion(self._prefix(), None)).all()):
                return "criterion"
        if rules.deadline is not None and rules.clock is not None and rules.clock() > rules.deadline:
            return "time"
        return rules.end if self.left == 0 else None
