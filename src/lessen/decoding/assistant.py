"""Drafts from a small model where nothing can be copied, used only while they pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lessen.decoding.cost import CostCurve, measure_costs
from lessen.decoding.engine import choose_engine
from lessen.decoding.request import Request
from lessen.decoding.settings import context_length
from lessen.errors import InputError

_LONGEST = 8
_PROBE = 3
_FIRST_PAUSE = 32
_MEMORY = 40.0


@dataclass
class _State:
    """The assistant's view of one sequence: what its cache holds, and how often its drafts were right."""

    cache: Any
    seen: list[int] = field(default_factory=list)
    hits: float = 3.0
    trials: float = 5.0
    pause: int = _FIRST_PAUSE
    rested: int = 0

    @property
    def chance(self) -> float:
        return self.hits / self.trials


class Assistant:
    """Greedy drafts of a smaller model with the same vocabulary, for several sequences at once.

    The drafts are points, not draws, so verification is the same as for copied tokens and stays exact when sampling.
    Drafts that have stopped paying are tried again after 32, 64, 128 ... tokens.

    Raises:
        InputError: the vocabularies differ, or the model cannot be used for decoding.
    """

    def __init__(self, model: Any, target: Any, costs: CostCurve | None = None) -> None:
        sizes = [each.config.get_text_config().vocab_size for each in (target, model)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"the assistant's vocabulary has {sizes[1]} tokens, the model's {sizes[0]}; they must be the same"
            )
        self.engine = choose_engine(model)
        self.context = context_length(model)
        self.costs = costs or self._measure()

    def _measure(self) -> CostCurve:
        cache, before = self.engine.new_cache(), 64 if self.context is None else min(64, max(1, self.context // 2))
        self.engine.run([(cache, [1] * before)])

        def run(rows: int) -> None:
            self.engine.run([(cache, [1] * rows)])
            self.engine.cut(cache, before)

        room = _LONGEST if self.context is None else max(1, self.context - before)
        return measure_costs(run, sizes=[size for size in (1, 2, 4, 8) if size <= room])


class Drafting:
    """The drafts of an assistant during one call."""

    def __init__(self, assistant: Assistant) -> None:
        self._engine, self._costs, self._context = assistant.engine, assistant.costs, assistant.context
        self._states: dict[int, _State] = {}

    def draft(self, chosen: Sequence[tuple[Request, int]], curve: CostCurve) -> list[list[int]]:
        """Return a draft for each request, of at most as many tokens as given with it; empty where it rests."""
        requests = [request for request, _ in chosen]
        states = [self._states.setdefault(id(request), _State(self._engine.new_cache())) for request in requests]
        length = self._length(states, curve)
        if length == 0:
            if not any(state.rested >= state.pause for state in states):
                return [[] for _ in requests]
            length = _PROBE
        limits = [min(length, room, self._room(request)) for request, room in chosen]
        return self._run(requests, states, limits)

    def _room(self, request: Request) -> int:
        return _LONGEST if self._context is None else max(0, self._context - len(request.tokens))

    def _length(self, states: Sequence[_State], curve: CostCurve) -> int:
        count = len(states)
        plain, best, best_value = curve.seconds(count), 0, 0.0
        for length in range(1, _LONGEST + 1):
            expected = sum(state.chance**step for state in states for step in range(1, length + 1))
            spent = curve.seconds(count * (1 + length)) - plain + length * self._costs.seconds(count)
            value = expected - count / plain * spent
            if value > best_value:
                best, best_value = length, value
        return best

    def _run(self, requests: Sequence[Request], states: Sequence[_State], limits: Sequence[int]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in requests]
        todo = [number for number, limit in enumerate(limits) if limit > 0]
        feeds = {number: self._unseen(requests[number], states[number]) for number in todo}
        while todo:
            logits = self._feed([(states[number], feeds[number]) for number in todo])
            for number, token in zip(todo, logits.argmax(-1).tolist(), strict=True):
                drafts[number].append(token)
                feeds[number] = [token]
            todo = [number for number in todo if len(drafts[number]) < limits[number]]
        for number, draft in enumerate(drafts):
            ends = [place for place, token in enumerate(draft) if token in requests[number].rules.eos]
            drafts[number] = draft[: ends[0] + 1] if ends else draft
        return drafts

    def _feed(self, work: Sequence[tuple[_State, list[int]]]) -> Tensor:
        """Add tokens to the caches and return the logits after the last of each; no pass goes beyond its reach."""
        ahead = [(state, tokens, self._engine.reach(state.cache)) for state, tokens in work]
        for state, tokens, reach in ahead:
            if reach is not None and len(tokens) > reach:
                self._engine.run([(state.cache, tokens[:reach])], last_only=True)
                state.seen += tokens[:reach]
                del tokens[:reach]
        logits = self._engine.run([(state.cache, tokens) for state, tokens in work], last_only=True)
        for state, tokens in work:
            state.seen += tokens
        return logits

    def _unseen(self, request: Request, state: _State) -> list[int]:
        """Cut the assistant's cache to what is still true of the sequence and return the tokens it has not seen."""
        first = min(len(state.seen), len(request.tokens) - 1)
        if state.seen[:first] != request.tokens[:first]:
            first = next(place for place in range(first) if state.seen[place] != request.tokens[place])
        self._engine.cut(state.cache, first)
        del state.seen[first:]
        return request.tokens[first:]

    def observe(self, request: Request, draft: Sequence[int], emitted: Sequence[int]) -> None:
        """Learn how many drafted tokens were right; an empty draft counts as rest."""
        state = self._states.get(id(request))
        if state is None:
            return
        if not draft:
            state.rested += len(emitted)
            return
        held = 0
        while held < min(len(draft), len(emitted)) and draft[held] == emitted[held]:
            held += 1
        tried = min(held + 1, len(draft))
        if state.trials >= _MEMORY:
            state.trials, state.hits = state.trials * 0.8, state.hits * 0.8
        state.trials, state.hits = state.trials + tried, state.hits + held
        state.pause = _FIRST_PAUSE if held == len(draft) else min(1024, state.pause * 2)
        state.rested = 0

    def forget(self, request: Request) -> None:
        """Free the cache of a finished sequence."""
        self._states.pop(id(request), None)
