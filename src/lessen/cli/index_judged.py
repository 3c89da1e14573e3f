"""What `lessen index report` says: recall against exact search, and the processor's time of a query."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lessen.cli.output import say
from lessen.errors import DataError

if TYPE_CHECKING:
    from lessen.retrieval.folder import IndexFolder


def judged(index: IndexFolder, k: int) -> dict[str, Any]:
    """Judge an index by its probes: documents of its own that look for their neighbours."""
    from lessen.retrieval.exact import recall, shares

    probes = index.probes()
    if probes is None or not probes.digests.shape[1]:
        raise DataError(f"{index.path} holds too few documents to judge it by")
    k = min(k, probes.digests.shape[1])
    found, milliseconds = _timed(index, probes.vectors, k + 1)
    kept = found.masked_fill(found == probes.own[:, None], 0)
    order = (kept == 0).to(kept.dtype).sort(dim=1, stable=True).indices[:, :k]
    each = shares(kept.gather(1, order), probes.digests[:, :k])
    return {"k": k, **recall(each, k), "of": "documents as queries", "ms_a_query": milliseconds}


def judged_on(
    index: IndexFolder, queries: Path, against: Path | None, k: int, column: str | None, ids: str
) -> dict[str, Any]:
    """Judge an index by queries of a file and exact search over the vectors that were indexed."""
    import torch

    from lessen.retrieval import ids as naming
    from lessen.retrieval.checks import checked
    from lessen.retrieval.exact import nearest, recall, shares
    from lessen.retrieval.sources import read_all, read_vectors

    assert against is not None
    metric = index.manifest.metric
    asked = checked(read_all(queries, column or "vector", ids).vectors, index.dim, metric, what=str(queries))
    digests: list[Any] = []

    def held() -> Iterator[Any]:
        for batch in read_vectors(against, column or "vector", ids):
            there = torch.tensor(index.has(batch.ids))
            digests.append(naming.digests(batch.ids)[there])
            yield checked(batch.vectors, index.dim, metric, batch.ids, str(against))[there]

    _, numbers = nearest(asked, held(), k)
    every = torch.cat(digests)
    if len(every) < len(index):
        say(f"{against} holds {len(every)} of the {len(index)} documents; recall is against those")
    if not numbers.shape[1]:
        raise DataError(f"{against} holds no document of {index.path}; their ids differ")
    found, milliseconds = _timed(index, asked, k)
    each = shares(found, every[numbers])
    return {"k": numbers.shape[1], **recall(each, k), "of": "queries", "ms_a_query": milliseconds}


def _timed(index: IndexFolder, queries: Any, k: int) -> tuple[Any, float]:
    """Return what queries find, one by one, and the processor's milliseconds of one."""
    import torch

    index.search_digests(queries[:1], k)  # what is made at the first search
    started = time.process_time()
    found = torch.cat([index.search_digests(query[None], k) for query in queries])
    return found, round(1e3 * (time.process_time() - started) / len(queries), 4)
