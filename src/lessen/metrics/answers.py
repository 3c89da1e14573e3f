"""One answer against its references: exact match, F1 of words, ROUGE-L. A judge keeps the numbers as columns.

Exact match and F1 follow SQuAD (arXiv 1606.05250): lower case, no punctuation, no articles. ROUGE-L follows Lin (2004)
with words of letters and digits in lower case, unstemmed, and recall and precision weighed alike.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_DROPPED = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Say whether the answer is one of the references, articles and punctuation apart."""
    return _plain(answer) in {_plain(reference) for reference in references}


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the F1 of the answer's words against the nearest reference; two empty texts agree."""
    return max(_f1(_plain(answer).split(), _plain(reference).split()) for reference in references)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of words with the nearest reference, 0 without any word."""
    words = _WORD.findall(answer.lower())
    return max(_rouge_l(words, _WORD.findall(reference.lower())) for reference in references)


def _plain(text: str) -> str:
    words = text.lower().translate(_DROPPED).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _f1(found: Sequence[str], expected: Sequence[str]) -> float:
    if not found or not expected:
        return float(found == expected)
    shared = sum((Counter(found) & Counter(expected)).values())
    return 2.0 * shared / (len(found) + len(expected))


def _rouge_l(found: Sequence[str], expected: Sequence[str]) -> float:
    if not found or not expected:
        return 0.0
    row = [0] * (len(expected) + 1)  # length of the common subsequence with each beginning of the reference
    for word in found:
        before = 0
        for place, other in enumerate(expected, 1):
            kept = row[place]
            row[place] = before + 1 if word == other else max(row[place], row[place - 1])
            before = kept
    return 2.0 * row[-1] / (len(found) + len(expected))
