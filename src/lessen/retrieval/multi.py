"""An index of documents that are sets of token vectors: found by one vector of each, ordered by late interaction.

add      tokens --MUVERA--> one vector, held in any form of an index; tokens beside it in the same file of rows
search   vector of the query --> `candidates` documents --> exact MaxSim with their tokens --> k best
exact    MaxSim with every document, behind an int8 screen with proven bounds

It is an `IndexFolder` in all else: nothing acknowledged is lost, files are mapped, another encoder is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lessen.errors import ArtifactError, ConfigError, DataError, LessenError, NonFiniteError
from lessen.retrieval import token_rows
from lessen.retrieval.checks import LONGEST
from lessen.retrieval.folder import Found, IndexFolder
from lessen.retrieval.maxsim import Screen, checked_query, rescore, search
from lessen.retrieval.muvera import Encoder, Encoding
from lessen.stored.vectors.token_sets import TokenSets

CANDIDATES = 100
OPENING = 32
"""Tokens of a document that look for others, where an index judges itself."""
Held = Literal["float32", "float16", "int8"]


class MultiFolder:
    """An open index of token sets."""

    def __init__(self, index: IndexFolder) -> None:
        """Take an open folder. Raises ConfigError: it holds single vectors; ArtifactError: its record is wrong."""
        said = index.manifest.multi
        if said is None:
            raise ConfigError(f"{index.path} holds one vector a document; it was not built with --multi")
        self.index = index
        try:
            self.encoding = Encoding(**said["encoding"])
            if said["tokens"] not in token_rows.HELD or self.encoding.width != index.dim:
                raise ValueError("its encoding and its rows do not belong together")
        except (KeyError, TypeError, ValueError, LessenError) as error:
            raise ArtifactError(f"{index.path / 'index.json'}: the record of token sets is wrong: {error}") from error
        self._encoder = Encoder(self.encoding)
        self._screens: dict[str, tuple[int, Screen]] = {}

    @classmethod
    def create(
        cls, path: Path, form: str, sample: Sequence[Tensor], encoding: Encoding, tokens: Held = "float16",
        encoder: dict[str, Any] | None = None, seed: int = 0,
    ) -> MultiFolder:  # fmt: skip
        """Make an index without rows.

        Args:
            form: of the one vector of each document, see `lessen.retrieval.forms`.
            sample: token sets, float [tokens, dim], that codebooks are learned from.
            tokens: how token vectors are held; what `exact` and rescoring compute with is what is held.
            encoder: see `IndexFolder.create`.

        Raises:
            OutputError, ConfigError, DataError, NonFiniteError: see `IndexFolder.create`.
        """
        vectors = Encoder(encoding).documents(token_sets(sample, encoding.dim, None))
        said = {"encoding": asdict(encoding), "tokens": tokens}
        return cls(IndexFolder.create(path, form, vectors, "dot", encoder, seed, said))

    @classmethod
    def open(cls, path: Path) -> MultiFolder:
        """Open an index. Raises ArtifactError, ConfigError."""
        return cls(IndexFolder.open(path))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def token_bytes(self) -> float:
        """Bytes that the tokens of a document take, on average."""
        size = self.encoding.dim * torch.zeros((), dtype=token_rows.HELD[self.held]).itemsize
        size += 4 if self.held == "int8" else 0
        count = sum(len(part.tensors["tokens.values"]) for part in self.index.parts)
        return size * count / max(1, sum(part.rows for part in self.index.parts))

    @property
    def held(self) -> str:
        """How tokens are held."""
        assert self.index.manifest.multi is not None
        return str(self.index.manifest.multi["tokens"])

    def add(
        self, ids: Sequence[str], sets: Sequence[Tensor], encoder: dict[str, Any] | None = None,
        there: Literal["refuse", "skip"] = "refuse",
    ) -> int:  # fmt: skip
        """Add documents, float [tokens, dim] each; when this returns, they stay. Return how many were new.

        Raises:
            DataError: a document is empty, of another width or holds too large a number, or see `IndexFolder.add`.
            NonFiniteError, ConfigError, OutputError: see there.
        """
        if len(ids) != len(sets):
            raise DataError(f"{len(ids)} ids for {len(sets)} documents; give each document one")
        if not sets:
            return 0
        ready = token_sets(sets, self.encoding.dim, ids)
        self._check_sizes(ids, sets)
        vectors = self._encoder.documents(ready)
        return self.index.add(ids, vectors, encoder, there, sets)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents. Raises DataError, OutputError, see `IndexFolder.remove`."""
        self.index.remove(ids)

    def search(self, queries: Sequence[Tensor], k: int, candidates: int = CANDIDATES) -> list[Found]:
        """Return the k best of each query's candidates, float [tokens, dim] each, by MaxSim.

        Raises:
            DataError, NonFiniteError: a query is empty, of another width or not finite. ConfigError: k or the number of
            candidates is below 1.
        """
        asked = [checked_query(one, self.encoding.dim) for one in queries]
        if candidates < 1:
            raise ConfigError(f"candidates must be at least 1, found {candidates}")
        if not asked or not len(self):
            return [Found([], []) for _ in asked]
        found = []
        wanted = max(k, candidates)
        for query, places in zip(asked, self.index.best(self._encoder.queries(asked), wanted)[1], strict=True):
            sets = TokenSets.of([token_rows.opened(self.index.parts[part].tensors, row) for part, row in places])
            best = rescore(query, sets, torch.arange(len(places)), k)
            found.append(Found(self.index.names(places[n] for n in best.numbers.tolist()), best.scores.tolist()))
        return found

    def exact(self, queries: Sequence[Tensor], k: int) -> list[Found]:
        """Return the k best documents of all, float [tokens, dim] each; every token is read. Raises as `search`."""
        if k < 1:
            raise ConfigError(f"k must be at least 1, found {k}")
        found = []
        for query in (checked_query(one, self.encoding.dim) for one in queries):
            scored: list[tuple[float, tuple[int, int]]] = []
            for number, part in enumerate(self.index.parts):
                kept = part.kept()
                if len(kept):
                    best = search(query, self._screen(number), k)
                    rows = kept[best.numbers].tolist()
                    scored += [(score, (number, row)) for score, row in zip(best.scores.tolist(), rows, strict=True)]
            scored.sort(key=lambda one: (-one[0], one[1]))
            scored = scored[:k]
            found.append(Found(self.index.names(place for _, place in scored), [score for score, _ in scored]))
        return found

    def openings(self, count: int) -> tuple[list[str], list[Tensor]]:
        """Return names and first tokens of some documents, spread over the index, that look for others."""
        places = [(n, row) for n, part in enumerate(self.index.parts) for row in part.kept().tolist()]
        chosen = places[:: max(1, len(places) // count)][:count]
        sets = [token_rows.opened(self.index.parts[n].tensors, row)[:OPENING] for n, row in chosen]
        return self.index.names(chosen), sets

    def _check_sizes(self, ids: Sequence[str], sets: Sequence[Tensor]) -> None:
        """Refuse numbers that would be infinite as they are held, which no search could read. Raises DataError."""
        most = float(torch.finfo(torch.float16).max) if self.held == "float16" else LONGEST
        for name, one in zip(ids, sets, strict=True):
            largest = float(one.abs().max())
            if largest > most:
                raise DataError(
                    f"document {name!r} holds a number of size {largest:.1e}, and {self.held} tokens hold {most:.1e} "
                    "at most; scale the vectors" + ("" if most == LONGEST else ", or build an index of float32 tokens")
                )

    def _screen(self, number: int) -> Screen:
        part = self.index.parts[number]
        made = self._screens.get(part.name)
        if made is None or made[0] != len(part.removed):
            rows = part.kept().tolist()
            screen = Screen(TokenSets.of([token_rows.opened(part.tensors, row) for row in rows]))
            made = self._screens[part.name] = len(part.removed), screen
        return made[1]


def token_sets(sets: Sequence[Tensor], dim: int, ids: Sequence[str] | None) -> TokenSets:
    """Return documents ready to be encoded.

    Raises:
        DataError: one has no token, or tokens of another width. NonFiniteError: one holds NaN or infinity.
    """
    for number, one in enumerate(sets):
        name = f"document {number}" if ids is None else f"document {ids[number]!r}"
        if one.dim() != 2 or not len(one) or one.shape[1] != dim:
            raise DataError(f"{name} has tokens of shape {list(one.shape)}, not [1 or more, {dim}]")
        if not bool(one.isfinite().all()):
            raise NonFiniteError(f"{name} holds NaN or infinity; leave it out or encode it again")
    if not sets:
        raise DataError("there is no document")
    return TokenSets.of(sets)
