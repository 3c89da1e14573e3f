"""A sequence-to-sequence model with, beside it, what leads to an id: nothing, or paths of categories (HyPE).

query --encoder, once--> `guide` picks paths by beams over the trie of paths --> ids by beams over the trie of ids
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.retrieval.generative import Hit, Writer
from lessen.retrieval.trie import Trie
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


class NoPaths(nn.Module):
    """Ids are written at once."""

    def paths(self, model: Any, ids: Tensor, mask: Tensor) -> list[list[int]]:  # noqa: ARG002
        """Return one path of no token."""
        return [[]]


@stored
class PathGuide(StoredModule):
    """State: `tokens` int64 [total], the paths one after the other; `ends` int64 [paths], where each ends.

    Args:
        tried: paths that ids are written along; beams: of the search for them.
    """

    kind = "path-guide"
    tokens: Tensor
    ends: Tensor

    def __init__(self, paths: int, total: int, tried: int, beams: int) -> None:
        super().__init__()
        self.count = checks.whole("paths", paths, 1, 2**24)
        self.total = checks.whole("total", total, self.count, 2**30)
        self.tried = checks.whole("tried", tried, 1, 1000)
        self.beams = checks.whole("beams", beams, 1, 10_000)
        self.register_buffer("tokens", torch.zeros(self.total, dtype=torch.int64))
        self.register_buffer("ends", torch.arange(1, self.count + 1))
        self._trie: Trie | None = None

    @classmethod
    def of(cls, paths: Sequence[Sequence[int]], tried: int, beams: int) -> PathGuide:
        """Return the guide of different paths, none of which begins another."""
        made = cls(len(paths), sum(map(len, paths)), tried, beams)
        made.tokens.copy_(torch.tensor([token for path in paths for token in path]))
        made.ends.copy_(torch.tensor([len(path) for path in paths]).cumsum(0))
        return made

    def config(self) -> dict[str, Any]:
        """Return sizes and how many paths are tried."""
        return {"paths": self.count, "total": self.total, "tried": self.tried, "beams": self.beams}

    def check_values(self) -> None:
        """Refuse ends that are out of order. Raises ValueError."""
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.ends])
        if bool((starts.diff() < 1).any()) or int(self.ends[-1]) != self.total or int(self.tokens.min()) < 0:
            raise ValueError("ends do not cut the tokens into paths of one token or more")

    def all_paths(self) -> list[list[int]]:
        """Return the tokens of each path."""
        return [part.tolist() for part in self.tokens.tensor_split(self.ends[:-1])]

    def paths(self, model: Any, ids: Tensor, mask: Tensor) -> list[list[int]]:
        """Return the paths to try for one query, the likeliest first."""
        held = self.all_paths()
        self._trie = self._trie or Trie.of(held)
        hits = Writer(model, self._trie).search(ids, mask, beams=self.beams)
        return [held[hit.document] for hit in hits[: self.tried]]

    def dequantise(self) -> Tensor:
        """Return the tokens, int64 [total]."""
        return self.tokens


class DocumentWriter(nn.Module):
    """A Hugging Face encoder-decoder that writes ids of documents.

    inputs: `input_ids`, `attention_mask` int64 [B, T], `decoder_input_ids` int64 [B, S]; answers logits [B, S, words].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.guide: nn.Module = NoPaths()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Return the logits of the next token at each place."""
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits
        return logits

    def search(self, trie: Trie, ids: Tensor, mask: Tensor, beams: int = 20) -> list[Hit]:
        """Return the documents of one query, int64 [1, T], best first, each once; see `Writer.search`."""
        guide: Any = self.guide
        return Writer(self.model, trie).search(ids, mask, guide.paths(self.model, ids, mask), beams)
