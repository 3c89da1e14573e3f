"""Writes the table of RTN, GPTQ and OAC in pairs into docs/weights.md: python -m benchmarks.language.paired_table"""

from __future__ import annotations

from benchmarks.guides import Guide, read
from benchmarks.language.paired import lines


def paired() -> str:
    """Return what each row loses more than the next one, by text."""
    return "\n".join(lines(read("language_paired"))) + "\n"


GUIDE = Guide("weights", {"paired": paired})

if __name__ == "__main__":
    GUIDE.write()
