"""faiss (Douze et al. 2024, arXiv 2401.08281): forms that its indexes hold as they are, and its files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen import files
from lessen.errors import ConfigError, MissingExtraError
from lessen.stored.vectors.flat import FlatVectors
from lessen.stored.vectors.index import Index, VectorIndex
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.staged import StagedVectors


@cache
def faiss_module() -> Any:
    """Return faiss, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def as_faiss(index: VectorIndex) -> Any:
    """Return a faiss index by inner products with the same rows: IndexFlatIP or IndexPQ.

    Raises:
        MissingExtraError: faiss is not installed.
        ConfigError: faiss has no index for this form.
    """
    faiss = faiss_module()
    if faiss is None:
        raise MissingExtraError("retrieval", "faiss-cpu", "an index of faiss")
    if isinstance(index, FlatVectors):
        made = faiss.IndexFlatIP(index.dim)
        made.add(index.vectors.contiguous().numpy())
        return made
    if isinstance(index, ProductVectors):
        made = faiss.IndexPQ(index.dim, index.groups, 8, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(index.centres.contiguous().numpy().ravel(), made.pq.centroids)
        faiss.copy_array_to_vector(index.codes.contiguous().numpy().ravel(), made.codes)
        made.is_trained, made.ntotal = True, index.rows
        return made
    raise ConfigError(
        f"faiss has no index that holds {index.kind} number for number; build one of the form flat or pq:groups=N"
    )


def chosen(index: Index, rows: torch.Tensor) -> Index:
    """Return an index of the same form with some of the rows, int64 [n]."""
    made = type(index)(**{**index.config(), "rows": len(rows)})
    made.load_state_dict(
        {name: tensor[rows] if name in index.per_row else tensor for name, tensor in index.state_dict().items()}
    )
    return made


def export(modules: list[StagedVectors], kept: list[torch.Tensor], ids: list[str], path: Path) -> None:
    """Write one faiss file of the coarse stage of all rows that are kept, and their names to PATH.ids, one a line.

    Names that are whole numbers below 2^63 become the numbers that faiss itself returns.

    Raises:
        MissingExtraError, ConfigError: see `as_faiss`; vectors are reduced, which faiss files of these forms are not.
    """
    if any(one.reduction is not None for one in modules):
        raise ConfigError("a faiss file of this form has no place for the reduction; build the index without one")
    broken = next((name for name in ids if "\n" in name), None)
    if broken is not None:
        raise ConfigError(
            f"the id {broken[:80]!r} holds a line break, and {path.name}.ids has one name a line; remove that "
            "document, or name it otherwise"
        )
    faiss = faiss_module()
    whole = None
    for one, rows in zip(modules, kept, strict=True):
        made = as_faiss(chosen(one.coarse, rows))
        if whole is None:
            whole = made
        else:
            whole.merge_from(made, 0)
    if whole is None:
        raise ConfigError("the index is empty; there is nothing to write for faiss")
    numbers = [int(name) for name in ids if name.isascii() and name.isdigit() and len(name) < 19]
    if len(numbers) == len(ids):
        # a centre's own nearest centre is itself, so that what codes stand for gets the same codes again
        mapped = faiss.IndexIDMap2(as_faiss(chosen(modules[0].coarse, torch.zeros(0, dtype=torch.int64))))
        mapped.add_with_ids(whole.reconstruct_n(0, whole.ntotal), np.asarray(numbers, dtype=np.int64))
        whole = mapped
    files.atomic_write(path, faiss.serialize_index(whole).tobytes())
    names = "".join(name + "\n" for name in ids)
    files.atomic_write(path.with_name(path.name + ".ids"), names)
