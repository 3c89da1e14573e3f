"""Functions that `lessen checkpoint prove --train` calls in the tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from runs import resume

__all__ = ["broken", "resume"]


def broken(checkpoint, steps, seed):
    outcome = resume(checkpoint, steps, seed)
    return {**outcome, "final": outcome["final"] + ("lessen-prove" in str(checkpoint))}
