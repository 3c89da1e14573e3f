"""The copy table: which earlier place in the text continues the last few tokens, found in O(1).

CopySpec (arXiv 2502.08923) keeps a dictionary from each run of `key_length` tokens to the place after it. Beyond the
paper: several places are kept for a key and the one whose preceding text agrees longest wins; a copy that was
interrupted by one substituted token is taken up again right after it; and texts of earlier turns and requests can be
searched as well.

    text    ... the red  house stood ... the red  house
    key                                  the red  house   -> place of "stood"
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lessen.errors import ConfigError

PLACES_PER_KEY = 4
"""The first place of a key and the newest ones are kept, so that a look-up stays O(1) in repetitive text."""

LONGEST_MATCH = 32
"""Agreement before a place is compared no further back than this many tokens."""

BREAK = -1
"""Stands between texts; it is no token, so no key and no draft crosses it."""


@dataclass(frozen=True)
class Place:
    """A place to copy from: `source[start:]` is the proposed continuation.

    `matched` tokens before `start` agree with the end of the text. `resumed` is None for such an exact match; for a
    copy taken up again after a substituted token it counts the tokens that agreed since.
    """

    source: Sequence[int]
    start: int
    matched: int
    resumed: int | None = None

    def draft(self, limit: int) -> list[int]:
        """Return at most `limit` tokens that followed this place, up to a break between texts.

        A copy that reaches the end of the text goes on with what it has copied so far, as repeating text would.
        """
        tokens = list(self.source[self.start : self.start + max(0, limit)])
        if BREAK in tokens:
            return tokens[: tokens.index(BREAK)]
        for number in range(limit - len(tokens)):
            tokens.append(tokens[number])
        return tokens


class TokenIndex:
    """A growing text and the places after each run of `key_length` tokens in it.

    A run is entered only once its next token is known, so a key never finds itself.
    """

    def __init__(self, key_length: int = 3, tokens: Iterable[int] = ()) -> None:
        if key_length < 1:
            raise ConfigError(f"key_length is {key_length}; it must be at least 1")
        self.key_length = key_length
        self.tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens and enter the keys whose continuation they are."""
        text, length = self.tokens, self.key_length
        for token in tokens:
            place = len(text)
            if place >= length and token != BREAK:
                places = self._places.setdefault(tuple(text[place - length :]), [])
                if len(places) == PLACES_PER_KEY:
                    del places[1]
                places.append(place)
            text.append(token)

    def find(self, text: Sequence[int]) -> list[Place]:
        """Return the places that continue the last `key_length` tokens of `text`, oldest first."""
        places = self._places.get(tuple(text[-self.key_length :]), ())
        return [Place(self.tokens, place, self._agreement(place, text)) for place in places]

    def _agreement(self, place: int, text: Sequence[int]) -> int:
        longest = min(LONGEST_MATCH, place, len(text))
        count = self.key_length
        while count < longest and self.tokens[place - 1 - count] == text[len(text) - 1 - count]:
            count += 1
        return count


class TextMemory:
    """Texts of earlier turns and requests, bounded in tokens; the oldest are forgotten first.

    About 300 bytes a token are held while it is remembered. Several calls may add and find at once: texts appear whole.
    """

    def __init__(self, limit: int = 32768, key_length: int = 3) -> None:
        self.limit = limit
        self.index = TokenIndex(key_length)
        self._texts: list[list[int]] = []
        self._lock = threading.Lock()

    def add(self, tokens: Sequence[int]) -> None:
        """Remember a text, such as a prompt with its answer."""
        with self._lock:
            self._texts.append(list(tokens[-self.limit :]))
            self.index.extend([*self._texts[-1], BREAK])
            if len(self.index) > 2 * self.limit:
                self._forget()

    def find(self, text: Sequence[int]) -> list[Place]:
        """Return the places that continue the end of `text`, oldest first."""
        with self._lock:
            return self.index.find(text)

    def _forget(self) -> None:
        total, kept = 0, 0
        for text in reversed(self._texts):
            total += len(text)
            if total > self.limit:
                break
            kept += 1
        self._texts = self._texts[-max(1, kept) :]
        self.index = TokenIndex(self.index.key_length)
        for text in self._texts:
            self.index.extend([*text, BREAK])
