"""Documents and keywords as vectors of word counts, without a model: what an encoder must beat."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import DataError

WORDS = 2048
"""Words that are counted: the commonest of those that stand in at most half of the documents."""
_WORD = re.compile(r"[^\W\d_]{2,}")


class WordVectors:
    """Counts weighed by how few documents a word stands in (tf-idf, natural logarithms, vectors of length 1)."""

    def __init__(self, documents: Sequence[str], most: int = WORDS) -> None:
        """Learn the words of documents.

        Raises:
            DataError: no word stands in a part of them.
        """
        self.seen = Counter(word for text in documents for word in set(words_of(text)))
        rare = [(-count, word) for word, count in self.seen.items() if 2 * count <= len(documents)]
        self.places = {word: place for place, (_, word) in enumerate(sorted(rare)[:most])}
        if not self.places:
            raise DataError(f"{len(documents)} texts have no word that tells them apart")
        held = torch.tensor([self.seen[word] for word in self.places])
        self.weights = (len(documents) / held).log() + 1

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return float32 [n, words], of length 1; zero for a text without a known word."""
        counts = np.zeros((len(texts), len(self.places)), dtype=np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(words_of(text)).items():
                if word in self.places:
                    counts[row, self.places[word]] = 1 + math.log(count)
        return F.normalize(torch.from_numpy(counts) * self.weights, dim=1)

    def typical(self, texts: Sequence[str], count: int) -> list[str]:
        """Return the words that weigh most in texts, on average."""
        order = self(texts).mean(dim=0).argsort(descending=True, stable=True)[:count].tolist()
        names = list(self.places)
        return [names[place] for place in order]


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return _WORD.findall(text.lower())
