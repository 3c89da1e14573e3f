"""What decoding with drafts took, against plain decoding where that was measured, and whether it paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lessen.decoding.request import Counts


@dataclass(frozen=True)
class Comparison:
    """Plain decoding of the same prompts in the same process: seconds, and how far the outputs agree."""

    plain_seconds: float
    seconds: float
    identical: int
    prompts: int
    agreement: float
    """Share of tokens before the first difference of a sequence; 1.0 when all are identical."""
    together: bool = True
    """Whether plain decoding ran the prompts as one batch; where padding could change its output it does not."""

    @property
    def speed_up(self) -> float:
        """Plain seconds over seconds with drafts."""
        return self.plain_seconds / self.seconds


@dataclass(frozen=True)
class DecodeReport:
    """Counts and times of one call."""

    prompts: int
    prompt_tokens: int
    new_tokens: int
    passes: int
    """Forward passes after the prompt, each shared by all unfinished sequences."""
    rows: int
    """New-token rows those passes computed."""
    drafted: int
    accepted: int
    assistant_drafted: int
    assistant_accepted: int
    seconds: float
    prefill_seconds: float
    unpadded: bool
    dtype: str
    packed_bytes: int
    cut_by_context: int = 0
    """Sequences that ended because the model's positions were used up."""
    context: int | None = None
    pass_cost: dict[int, float] = field(default_factory=dict)
    """Measured cost of a pass by its new tokens, relative to one."""
    comparison: Comparison | None = None

    @classmethod
    def of(cls, counts: Sequence[Counts], **rest: Any) -> DecodeReport:
        """Sum the counts of all sequences."""
        total = {name: sum(getattr(count, name) for count in counts) for name in asdict(Counts()) if name != "passes"}
        return cls(**total, **rest)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens emitted by a sequence in one of its passes, the prompt's pass left out."""
        return (self.new_tokens - self.prompts) / (self.rows - self.drafted) if self.rows > self.drafted else 1.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, the prompt's pass included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        values = asdict(self)
        values["pass_cost"] = {str(size): cost for size, cost in self.pass_cost.items()}
        values |= {"tokens_per_pass": self.tokens_per_pass, "tokens_per_second": self.tokens_per_second}
        values["verdict"] = self.verdict()
        if self.comparison is not None:
            values["comparison"]["speed_up"] = self.comparison.speed_up
        return values

    def verdict(self) -> str:
        """Say in one sentence whether drafting paid."""
        share = self.accepted / self.new_tokens if self.new_tokens else 0.0
        copied = f"{share:.0%} of the tokens were accepted drafts"
        if self.comparison is None:
            if self.drafted == 0:
                return "Nothing was drafted: this text does not repeat itself; time is that of plain decoding."
            return f"{copied}; run with a comparison to know the speed-up."
        ratio = self.comparison.speed_up
        if share < 0.05:
            return f"Copying does not pay here: {copied}; total time is {ratio:.2f} times as fast as plain decoding."
        if ratio < 1.02:
            return f"Copying does not pay here: {copied}, yet speed is {ratio:.2f} times that of plain decoding."
        return f"Decoding was {ratio:.2f} times as fast as plain decoding; {copied}."

    def context_line(self) -> str:
        """Say how many sequences the model's context ended."""
        return f"{self.cut_by_context} of {self.prompts} texts ended at the model's context of {self.context} tokens"

    def lines(self) -> list[str]:
        """Return the report as text lines."""
        kind = "unpadded batch" if self.unpadded else "one sequence at a time"
        text = [
            f"prompts            {self.prompts} ({self.prompt_tokens} tokens)",
            f"new tokens         {self.new_tokens} in {self.passes} passes after the prompt ({kind})",
            f"tokens per pass    {self.tokens_per_pass:.2f}",
            f"drafted, accepted  {self.drafted}, {self.accepted}",
            f"time               {self.seconds:.2f} s (prompt {self.prefill_seconds:.2f} s), "
            f"{self.tokens_per_second:.1f} tokens/s",
        ]
        if self.assistant_drafted:
            text.append(f"of these assistant {self.assistant_drafted}, {self.assistant_accepted}")
        if self.packed_bytes:
            text.append(f"packed weights     {self.packed_bytes / 1e6:.0f} MB held beside the model")
        if self.cut_by_context:
            text.append(f"context            {self.context_line()}")
        if self.comparison is not None:
            same = f"{self.comparison.identical} of {self.comparison.prompts} outputs identical"
            how = "" if self.comparison.together else ", one prompt at a time"
            text.append(f"plain decoding     {self.comparison.plain_seconds:.2f} s{how}, {same} ({self.dtype})")
            if self.comparison.identical < self.comparison.prompts:
                text.append(f"agreement          {self.comparison.agreement:.1%} of tokens before the first difference")
        return [*text, self.verdict()]
