"""Counting passes without a model: a recorded greedy answer is replayed against a drafting policy.

The recorded answer says what the model would choose at every place, so a change of policy is judged in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lessen.decoding.copying import TextMemory
from lessen.decoding.cost import CostCurve
from lessen.decoding.policy import KEY_LENGTH, Copier, plan


@dataclass(frozen=True)
class Replay:
    """What decoding a recorded answer would have taken."""

    tokens: int
    passes: int
    drafted: int
    accepted: int
    rows: int
    seconds: float
    plain_seconds: float

    @property
    def speed_up(self) -> float:
        """Seconds of plain decoding over seconds with drafts, by the cost curve, prefill left out."""
        return self.plain_seconds / self.seconds if self.seconds else 1.0


def replay(
    prompt: Sequence[int],
    answer: Sequence[int],
    curve: CostCurve,
    key_length: int = KEY_LENGTH,
    memory: TextMemory | None = None,
    fixed_draft: int | None = None,
) -> Replay:
    """Replay one answer (token ids, its end-of-sequence token included) that followed `prompt`.

    Args:
        fixed_draft: draft this many tokens at every hit, as the paper does, instead of planning by cost.
    """
    copier = Copier(prompt, key_length, memory)
    copier.observe(answer[:1])
    done, passes, drafted, accepted, rows, seconds = min(1, len(answer)), 0, 0, 0, 0, 0.0
    while done < len(answer):
        candidate = copier.candidate(len(answer) - done - 1)
        length = min(fixed_draft, len(candidate.tokens)) if fixed_draft is not None else plan([candidate], curve)[0]
        held = 0
        while held < length and candidate.tokens[held] == answer[done + held]:
            held += 1
        copier.observe(answer[done : done + held + 1])
        passes, drafted, accepted = passes + 1, drafted + length, accepted + held
        rows, seconds = rows + 1 + length, seconds + curve.seconds(1 + length)
        done += held + 1
    plain = max(0, len(answer) - 1) * curve.seconds(1)
    return Replay(len(answer), passes, drafted, accepted, rows, seconds, plain)
