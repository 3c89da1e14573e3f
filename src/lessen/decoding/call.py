"""One call of the decoder: its sequences, and the rounds until each of them has ended.

look up    ->  plan          ->  one pass             ->  keep what the model     ->  cut each cache
a copy         draft lengths     over all new tokens      would have chosen           to what was kept

Everything that changes while decoding is held here or in the engine's caches, so that calls do not see one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lessen.decoding.assistant import Drafting
from lessen.decoding.cost import CostCurve
from lessen.decoding.policy import NOTHING, Candidate, plan
from lessen.decoding.protocol import Engine
from lessen.decoding.request import Request
from lessen.errors import NonFiniteError

PREFILL_ROWS = 4096
"""Prompts share a pass up to this many tokens."""


class Call:
    """Decodes requests to their ends; `seconds`, `prefill_seconds` and `passes` say what it took."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        costs: CostCurve,
        drafting: Drafting | None,
        requests: Sequence[Request],
        lengths: Callable[[Sequence[Candidate], CostCurve], list[int]] = plan,
    ) -> None:
        self._name, self.engine, self._costs, self._drafting = name, engine, costs, drafting
        self.requests, self._plan = requests, lengths
        self.passes, self.seconds, self.prefill_seconds = 0, 0.0, 0.0

    def run(self) -> None:
        """Decode. Raises NonFiniteError when the model gives NaN or infinity."""
        start = time.perf_counter()
        self._prefill()
        self.prefill_seconds = time.perf_counter() - start
        active = [request for request in self.requests if request.finish is None]
        while active:
            self._round(active)
            active = [request for request in active if request.finish is None]
        self.seconds = time.perf_counter() - start

    def _prefill(self) -> None:
        """Run the prompts, several in a pass while they fit, and choose each first token."""
        group: list[Request] = []
        for number, request in enumerate(self.requests):
            group.append(request)
            following = self.requests[number + 1].prompt if number + 1 < len(self.requests) else None
            if following is None or sum(len(each.prompt) for each in group) + len(following) > PREFILL_ROWS:
                logits = self.engine.run([(each.cache, each.prompt) for each in group], last_only=True)
                self._take(group, [[] for _ in group], logits)
                group = []

    def _round(self, active: Sequence[Request]) -> None:
        copied, drafts = self._drafts(active)
        logits = self.engine.run(
            [(request.cache, [request.tokens[-1], *draft]) for request, draft in zip(active, drafts, strict=True)]
        )
        taken = self._take(active, drafts, logits)
        for request, draft, tokens, from_text in zip(active, drafts, taken, copied, strict=True):
            self._count(request, draft, tokens, from_text)
            self.engine.cut(request.cache, len(request.tokens) - 1)
        self.passes += 1

    def _drafts(self, active: Sequence[Request]) -> tuple[list[bool], list[list[int]]]:
        """Return for each sequence whether its draft is copied, and the draft."""
        rooms = [self._room(request) for request in active]
        candidates = [
            NOTHING if request.copier is None else request.copier.candidate(room)
            for request, room in zip(active, rooms, strict=True)
        ]
        drafts = [
            candidate.tokens[:length] for candidate, length in zip(candidates, self._lengths(candidates), strict=True)
        ]
        copied = [bool(draft) for draft in drafts]
        idle = [number for number, draft in enumerate(drafts) if not draft]
        if self._drafting is not None and idle:
            chosen = [(active[number], rooms[number]) for number in idle]
            for number, draft in zip(idle, self._drafting.draft(chosen, self._costs), strict=True):
                drafts[number] = draft
        return copied, drafts

    def _room(self, request: Request) -> int:
        """Return how many tokens may be drafted for a sequence in the next pass."""
        reach = self.engine.reach(request.cache)
        return request.left - 1 if reach is None else min(request.left, reach) - 1

    def _lengths(self, candidates: Sequence[Candidate]) -> list[int]:
        if self.engine.batched:
            return self._plan(candidates, self._costs)
        return [self._plan([candidate], self._costs)[0] for candidate in candidates]  # each sequence has its own pass

    def _take(self, requests: Sequence[Request], drafts: Sequence[list[int]], logits: Tensor) -> list[list[int]]:
        best = logits.argmax(-1)
        if not logits.gather(1, best[:, None]).isfinite().all():
            raise NonFiniteError(
                f"{self._name} gave NaN or infinite logits while decoding; check its weights and dtype"
            )
        ids, start, taken = best.tolist(), 0, []
        for request, draft in zip(requests, drafts, strict=True):
            rows = slice(start, start + 1 + len(draft))
            taken.append(request.take(logits[rows], ids[rows], draft))
            start = rows.stop
        return taken

    def _count(self, request: Request, draft: list[int], emitted: list[int], copied: bool) -> None:
        counts = request.counts
        held = sum(1 for token, wanted in zip(emitted, draft, strict=False) if token == wanted)
        counts.rows, counts.drafted = counts.rows + 1 + len(draft), counts.drafted + len(draft)
        counts.accepted += held
        if self._drafting is None:
            return
        self._drafting.observe(request, [] if copied else draft, emitted)
        if not copied:
            counts.assistant_drafted += len(draft)
            counts.assistant_accepted += held
        if request.finish is not None:
            self._drafting.forget(request)

    def totals(self) -> dict[str, Any]:
        """Return what a report says of the call."""
        return {
            "prompts": len(self.requests),
            "prompt_tokens": sum(len(request.prompt) for request in self.requests),
            "new_tokens": sum(len(request.emitted) for request in self.requests),
            "passes": self.passes,
            "seconds": self.seconds,
            "prefill_seconds": self.prefill_seconds,
            "unpadded": self.engine.batched,
            "cut_by_context": sum(request.finish == "context" for request in self.requests),
        }
