"""Which tokens may come next, where only the ids of documents may be written: a trie in flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lessen.errors import DataError


class Trie:
    """Token sequences, none of which begins another; `nodes` of them share what they begin alike.

    Edges of a node lie side by side: `firsts` int64 [nodes + 1] says where, `tokens` int32 [edges] what is written,
    `targets` int32 [edges] where that leads. A node without edges is the end of a sequence, number `ends` of it.
    """

    def __init__(self, firsts: Tensor, tokens: Tensor, targets: Tensor, ends: Tensor) -> None:
        self.firsts, self.tokens, self.targets, self.ends = firsts, tokens, targets, ends

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> Trie:
        """Return the trie of sequences.

        Raises:
            DataError: there is none, one is empty, stands twice, or begins another.
        """
        children: list[dict[int, int]] = [{}]
        last: dict[int, int] = {}
        for number, sequence in enumerate(sequences):
            node = 0
            for token in sequence:
                node = children[node].setdefault(int(token), len(children))
                if node == len(children):
                    children.append({})
            if not len(sequence) or node in last:
                what = "is empty" if not len(sequence) else f"is that of document {last[node]}"
                raise DataError(f"the id of document {number} {what}; give each an id of its own")
            last[node] = number
        if not last:
            raise DataError("there is no document to decode")
        for node, number in last.items():
            if children[node]:
                raise DataError(f"the id of document {number} begins another; end ids with a token of their own")
        edges = [sorted(one.items()) for one in children]
        counts = torch.tensor([0, *(len(one) for one in edges)])
        ends = torch.full((len(children),), -1, dtype=torch.int32)
        ends[list(last)] = torch.tensor(list(last.values()), dtype=torch.int32)
        flat = [edge for one in edges for edge in one]
        return cls(
            counts.cumsum(0),
            torch.tensor([token for token, _ in flat], dtype=torch.int32),
            torch.tensor([target for _, target in flat], dtype=torch.int32),
            ends,
        )

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(one.nbytes for one in (self.firsts, self.tokens, self.targets, self.ends))

    def allowed(self, node: int) -> Tensor:
        """Return the tokens that may follow a node, int32 [n], rising."""
        return self.tokens[int(self.firsts[node]) : int(self.firsts[node + 1])]

    def follow(self, node: int, token: int) -> int:
        """Return the node that a token leads to. Raises KeyError where it may not follow."""
        first = int(self.firsts[node])
        here = self.allowed(node)
        place = int(torch.searchsorted(here, token))
        if place == len(here) or int(here[place]) != token:
            raise KeyError(token)
        return int(self.targets[first + place])

    def document(self, node: int) -> int:
        """Return the document that ends at a node, or -1."""
        return int(self.ends[node])
