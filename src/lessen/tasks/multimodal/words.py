"""The words of the task `vision-language-grid`: one token a word, no file needed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lessen.data.scenes import COLOURS, GLYPHS, SIDE

PAD, START, IMAGE, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<s>", "<image>", "<unk>")
_OWN = (
    "?", "what", "at", "row", "column", "of", "colour", "how", "many", "are", "is", "there",
    "left", "or", "right", "frame", "first", "yes", "no", "a", "b", "which", "shape", "moves",
    "where", "does", "it", "go", "move", "fast", "slow", "please", "directly", "give", "the", "best",
    "option", "answer",
)  # fmt: skip
_PLACES = tuple(f"{axis}{place + 1}" for axis in "rc" for place in range(SIDE))
WORDS = tuple(dict.fromkeys((*_SPECIAL, *map(str, range(SIDE + 3)), *_PLACES, *COLOURS, *GLYPHS, *_OWN)))
_NUMBER = {word: number for number, word in enumerate(WORDS)}
_WORD = re.compile(r"\w+|\?")


def encode(text: str) -> list[int]:
    """Return the tokens of a text: its words and question marks in lower case, <unk> for unknown words."""
    return [_NUMBER.get(word, UNKNOWN) for word in _WORD.findall(text.lower())]


def decode(tokens: Sequence[int]) -> str:
    """Return the words of tokens, special ones left out."""
    return " ".join(WORDS[token] for token in tokens if token >= len(_SPECIAL))
