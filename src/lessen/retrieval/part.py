"""One file of rows of an index folder, mapped: a stored module, the names of its rows, and which were removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lessen.errors import ArtifactError
from lessen.retrieval import ids as naming
from lessen.retrieval import token_rows
from lessen.retrieval.manifest import Manifest, Rows
from lessen.retrieval.scan import Scan
from lessen.retrieval.tensors import load_mapped
from lessen.stored.vectors.staged import StagedVectors


class Part:
    """A file of rows; `digests` int64 [rows] of their names."""

    def __init__(self, name: str, index: StagedVectors, tensors: dict[str, Tensor], removed: Sequence[int]) -> None:
        self.name, self.index, self.tensors = name, index, tensors
        self.digests = tensors["ids.digests"]
        self.removed = torch.tensor(removed, dtype=torch.int64)
        self.rows = index.rows
        self.scan = Scan(index, self.removed)

    @classmethod
    def read(cls, path: Path, one: Rows, manifest: Manifest, shared: dict[str, Tensor], verify: bool) -> Part:
        """Map a file. Raises ArtifactError."""
        where = path / one.name
        tensors = load_mapped(path, one, verify)
        index = twin(manifest, shared, where)
        try:
            index.take_rows({name: tensors[name] for name in index.per_row})
            index.check()
            ends = tensors["ids.ends"]
            whole = all(len(tensors[name]) == index.rows == one.rows for name in ("ids.ends", "ids.digests"))
            if not whole or int(ends[-1]) != len(tensors["ids.text"]) or bool((ends.diff() < 1).any()):
                raise ValueError("names and rows do not belong together")
            if manifest.multi is not None:
                token_rows.check(tensors, one.rows, manifest)
        except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            raise ArtifactError(f"{where} does not hold the rows of this index: {error}") from error
        return cls(one.name, index, tensors, one.removed)

    def again(self, one: Rows) -> Part:
        """Return the same rows without those that the record says were removed."""
        return self if len(one.removed) == len(self.removed) else Part(self.name, self.index, self.tensors, one.removed)

    def kept(self) -> Tensor:
        """Return the numbers of rows that were not removed, int64 [n]."""
        there = torch.ones(self.rows, dtype=torch.bool)
        there[self.removed] = False
        return there.nonzero()[:, 0]

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of rows."""
        return naming.names(self.tensors["ids.text"], self.tensors["ids.ends"], numbers)


def twin(manifest: Manifest, shared: dict[str, Tensor], where: Path) -> StagedVectors:
    """Return an index without rows that holds what all rows share. Raises ArtifactError."""
    try:
        with torch.device("meta"):
            made = StagedVectors(**{**manifest.index, "rows": 0})
        own = {name for name in made.state_dict() if name not in made.per_row}
        if own != set(shared):
            raise ValueError(f"{sorted(own ^ set(shared))[0]} is missing or not expected")
        for name, tensor in shared.items():
            made._set(name, tensor)
        for name in made.per_row:
            made._set(name, torch.zeros(made._get(name).shape, dtype=made._get(name).dtype))
        made.check()
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{where} does not fit the record of the index: {error}") from error
    return made
