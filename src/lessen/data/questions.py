"""Multiple-choice questions in files: CFinBench's folders of three types, and tables of questions with columns A to D.

<root>/<split>/{single_choice,multi_choice,judgment}/<i>-<j>.jsonl      text, OptionList, Answer          CFinBench
<root>/<subject>.csv                                                    Question, A, B, C, D, Answer      CMMLU, C-Eval

Parsing and scores follow the released evaluator of CFinBench (Nie et al., arXiv 2407.02301); its faults have strict
forms beside them: an empty answer to a question with several right letters earns half a point there and none here.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen.errors import DataError

KINDS = ("single", "multi", "judgment")
FOLDERS = {"single": "single_choice", "multi": "multi_choice", "judgment": "judgment"}
WEIGHTS = {"single": 0.4, "multi": 0.4, "judgment": 0.2}
"""Of a file in the score of its category."""
YES, NO = "正确", "错误"
LETTERS = "ABCDE"


@dataclass(frozen=True)
class Question:
    """One question: its text with the options, the right answer, and where it comes from."""

    kind: str
    text: str
    answer: str
    subject: str
    """Name of its file."""
    category: str = ""
    """What stands before the hyphen of the file's name; the same for all in tables."""


def read_questions(root: Path | str, split: str = "val", most: int | None = None) -> list[Question]:
    """Return the questions of a folder, at most so many a file.

    Raises:
        DataError: no folder, no questions, or a line that is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder of questions at {root}; give one in the form of CFinBench or with .csv files")
    found: list[Question] = []
    for kind in KINDS:
        for path in sorted((root / split / FOLDERS[kind]).glob("*.jsonl")):
            found += _first(_lines(path, kind), most)
    for path in sorted(root.glob("*.csv")):
        found += _first(_table(path), most)
    if not found:
        raise DataError(f"{root} holds no questions: neither {split}/{FOLDERS['single']}/*.jsonl nor *.csv")
    return found


def _first(rows: Iterator[Question], most: int | None) -> list[Question]:
    return [row for at, row in enumerate(rows) if most is None or at < most]


def _lines(path: Path, kind: str) -> Iterator[Question]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            options = "".join(f"\n{option}" for option in row.get("OptionList") or ())
            category = path.stem.partition("-")[0]
            yield Question(kind, f"{row['text']}{options}", str(row["Answer"]).strip(), path.stem, category)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f'{path}, line {number}: not an object with "text" and "Answer" ({error})') from error


def _table(path: Path) -> Iterator[Question]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        for number, row in enumerate(csv.DictReader(handle), 2):
            question, answer = row.get("Question"), (row.get("Answer") or "").strip()
            letters = [letter for letter in LETTERS if row.get(letter)]
            if not question or len(letters) < 2 or answer not in letters:
                raise DataError(
                    f"{path}, line {number}: needs Question, at least A and B, and an Answer that is one of them"
                )
            options = "".join(f"\n{letter}. {row[letter]}" for letter in letters)
            yield Question("single", f"{question}{options}", answer, path.stem, "")


# -- reading answers ---------------------------------------------------------------------------------------------------
def parse(kind: str, written: str) -> str:
    """Return the answer that the released evaluator reads, or an empty string.

    Punctuation goes first, then blanks, so that "GDP: B" is read as G, and two words for correct are the first of both.
    """
    text = re.sub(r"\s", "", re.sub(r"[^\w\s]", "", written))
    if kind == "judgment":
        places = [(text.find(word), word) for word in (YES, NO) if word in text]
        return min(places)[1] if places else ""
    found = re.search(r"[A-Z]" if kind == "single" else r"[A-E]+", text)
    return found.group() if found else ""


def parse_robust(kind: str, written: str) -> str:
    """Return the answer with full-width letters read as letters, and the letters of a set sorted and once each."""
    text = unicodedata.normalize("NFKC", written)
    if kind == "judgment":
        return parse(kind, text)
    if kind == "single":
        alone = re.search(r"(?<![A-Za-z])[A-E](?![A-Za-z])", text)
        return alone.group() if alone else ""
    return "".join(sorted(set(parse(kind, text))))


def score(kind: str, parsed: str, answer: str, strict: bool = False) -> float:
    """Return 1 for the right answer, else 0; of several letters 0.5 for a part of the right ones.

    Args:
        strict: nothing for an answer without a letter, and nothing for a part.
    """
    if kind not in KINDS:
        raise DataError(f"no type of question is called {kind!r}; the types are {', '.join(KINDS)}")
    if parsed == answer:
        return 1.0
    part = kind == "multi" and all(letter in answer for letter in parsed)
    return 0.5 if part and not strict else 0.0
