"""Functions that `lessen checkpoint prove --train` calls in the tests."""

from __future__ import annotations

from checkpoint_runs import resume

__all__ = ["broken", "resume"]


def broken(checkpoint, steps, seed):
    outcome = resume(checkpoint, steps, seed)
    return {**outcome, "final": outcome["final"] + ("lessen-prove" in str(checkpoint))}
