"""Documents as sets of token vectors, exactly and as int8 codes with what each code may be wrong by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.vectors.flat import rounded


@stored
class TokenSets(StoredModule):
    """State: `tokens` float32 [T, dim], `codes` int8 [T, dim], `scales` float32 [T], `starts` int64 [rows + 1].

    `errors` float32 [rows] is the largest distance of a document's token from what its code stands for, `longest`
    float32 [rows] the largest length of a token.
    """

    kind = "token-sets"
    tokens: Tensor
    codes: Tensor
    scales: Tensor
    starts: Tensor
    errors: Tensor
    longest: Tensor

    def __init__(self, rows: int, count: int, dim: int) -> None:
        super().__init__()
        self.rows = checks.whole("rows", rows, 1, 2**31)
        self.count = checks.whole("count", count, self.rows, 2**40)
        self.dim = checks.whole("dim", dim, 1, 1024)  # sums of int8 products of this length are exact in float32
        checks.elements("token sets", self.count, self.dim)
        self.register_buffer("tokens", torch.zeros(self.count, self.dim))
        self.register_buffer("codes", torch.zeros(self.count, self.dim, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(self.count))
        self.register_buffer("starts", torch.zeros(self.rows + 1, dtype=torch.int64))
        self.register_buffer("errors", torch.zeros(self.rows))
        self.register_buffer("longest", torch.zeros(self.rows))

    @classmethod
    def of(cls, sets: Sequence[Tensor]) -> TokenSets:
        """Return the sets of float tensors [tokens, dim], one a document.

        Raises:
            ValueError: there is none, one is empty, they are of several widths, or a number is not finite.
        """
        if not sets:
            raise ValueError("there is no document")
        dim = sets[0].shape[-1]
        for number, one in enumerate(sets):
            if one.dim() != 2 or one.shape[1] != dim or not len(one):
                raise ValueError(f"document {number} has tokens of shape {list(one.shape)}, not [1 or more, {dim}]")
            if not bool(one.isfinite().all()):
                raise ValueError(f"document {number} holds NaN or infinity")
        tokens = torch.cat(list(sets)).float()
        made = cls(len(sets), len(tokens), dim)
        lengths = torch.tensor([len(one) for one in sets])
        made.tokens.copy_(tokens)
        made.starts[1:] = lengths.cumsum(0)
        codes, scales = rounded(tokens)
        made.codes.copy_(codes)
        made.scales.copy_(scales)
        wrong = (tokens - codes.float() * scales[:, None]).norm(dim=1)
        made.errors.copy_(torch.segment_reduce(wrong, "max", lengths=lengths))
        made.longest.copy_(torch.segment_reduce(tokens.norm(dim=1), "max", lengths=lengths))
        return made

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"rows": self.rows, "count": self.count, "dim": self.dim}

    def check_values(self) -> None:
        """Refuse starts that are out of order or out of bounds. Raises ValueError."""
        if int(self.starts[0]) or int(self.starts[-1]) != self.count or bool((self.starts.diff() < 1).any()):
            raise ValueError("starts do not cut the tokens into documents of one token or more")

    @property
    def lengths(self) -> Tensor:
        """Tokens of each document, int64 [rows]."""
        return self.starts.diff()

    def dequantise(self) -> Tensor:
        """Return the tokens, float32 [count, dim]."""
        return self.tokens
