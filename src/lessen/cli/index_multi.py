"""`lessen index` over sets of token vectors: what differs from one vector a document."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lessen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lessen.log import Log
    from lessen.retrieval.folder import Found
    from lessen.retrieval.multi import MultiFolder
    from lessen.retrieval.muvera import Encoding
    from lessen.tasks.retrieval.readers import TextReader

CANDIDATES = 100
SAMPLE, AT_ONCE = 512, 256
"""Documents that codebooks are learned from at most; documents that are encoded and acknowledged together."""
PROBES = 64
"""Documents whose openings judge an index that is given no queries."""


def encoding_of(said: str, dim: int, seed: int) -> Encoding:
    """Return what `--encoding R,BITS,WIDTH` says, for tokens of `dim` numbers. Raises ConfigError."""
    from lessen.retrieval.muvera import Encoding

    try:
        repetitions, bits, width = (int(one) for one in said.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--encoding {said!r} is not understood: give repetitions, bits and numbers of a block, such as 20,5,16"
        ) from error
    return Encoding(dim, repetitions, bits, min(width, dim), seed=seed)


def check_same(folder: Path, **knobs: tuple[str | None, str]) -> None:
    """Refuse to add to an index under another knob than it was made with, given as what was asked and what it has.

    Raises:
        ConfigError: which knob, and what the index has.
    """
    for name, (asked, own) in knobs.items():
        if asked is not None and asked.replace(" ", "") != own.replace(" ", ""):
            raise ConfigError(
                f"--{name} {asked}: {folder} was made with {name} {own}, and what is added takes the same; leave "
                f"--{name} out, or build another folder"
            )


def build(
    folder: Path, texts: Path, reader: TextReader, form: str | None, encoding: str, held: str, column: str, ids: str,
    seed: int, log: Log,
) -> tuple[MultiFolder, int, int]:  # fmt: skip
    """Make an index of token sets, or add what it does not hold; return it, documents added, documents there."""
    from lessen.cli.arguments import new_folder
    from lessen.retrieval.multi import MultiFolder
    from lessen.retrieval.token_rows import HELD
    from lessen.tasks.retrieval.readers import read_texts

    if held not in HELD:
        raise ConfigError(f"--tokens {held!r} is not accepted; allowed: {', '.join(HELD)}")
    encoding_of(encoding, 1 << 16, seed)  # what cannot be is said before texts are read
    identity = reader.token_identity
    index = MultiFolder.open(folder) if (folder / "index.json").exists() else None
    if index is not None:
        index.index.check_encoder(identity, "what is added")
        check_same(folder, form=(form, index.index.manifest.form))
    else:
        new_folder(folder)
    pairs, seen, added, skipped = read_texts(texts, column, ids), set[str](), 0, 0
    while some := list(islice(pairs, AT_ONCE if index is not None else SAMPLE)):
        names = [name for name, _ in some]
        _once(names, seen)
        there = [False] * len(some) if index is None else index.index.has(names)
        new = [pair for pair, old in zip(some, there, strict=True) if not old]
        skipped += len(some) - len(new)
        if not new:
            continue
        own = [name for name, _ in new]
        sets = reader.tokens([text for _, text in new], own)
        if index is None:
            chosen = encoding_of(encoding, sets[0].shape[1], seed)
            index = MultiFolder.create(folder, form or "bits1", sets, chosen, held, identity, seed)  # type: ignore[arg-type]
        added += index.add(own, sets, identity, there="skip")
        log.progress("added", len(index), len(index))
    if index is None:
        raise DataError("there is nothing to index")
    return index, added, skipped


def _once(names: list[str], seen: set[str]) -> None:
    for name in names:
        if name in seen:
            raise DataError(f"the id {name!r} stands twice in what is added; give each document its own")
        seen.add(name)


def sizes(index: MultiFolder) -> dict[str, Any]:
    """Return what an index takes, a document: its one vector, and its tokens."""
    one = index.index
    return {
        "documents": len(one), "dim": index.encoding.dim, "encoding": one.dim, "bytes_a_document": one.row_bytes,
        "token_bytes_a_document": round(index.token_bytes, 1), "tokens": index.held,
        "shared_bytes": one.shared_bytes, "file_bytes": one.file_bytes,
    }  # fmt: skip


def queries_of(
    index: MultiFolder, text: list[str] | None, texts: Path | None, encoder: str | None, column: str, ids: str
) -> tuple[list[str], list[Any]]:
    """Return names and tokens of queries by the index's own encoder, or by one that says it is the same."""
    from lessen.cli.index_readers import text_reader
    from lessen.tasks.retrieval.readers import read_texts

    made = index.index.manifest.encoder
    if made is None or (text is None and texts is None) or (text and texts):
        raise ConfigError(f"{index.index.path} holds token sets of texts; give queries as --text, or as --texts FILE")
    pairs = [(one, one) for one in text or ()] if texts is None else list(read_texts(texts, column, ids))
    reader = text_reader(encoder or made["name"], made)
    index.index.check_encoder(reader.token_identity, "the query")
    names = [name for name, _ in pairs]
    said = [repr(name[:40]) for name in names]
    return names, reader.tokens([one for _, one in pairs], said, "query", cut=False)


def judged(index: MultiFolder, queries: list[Any] | None, k: int, candidates: int) -> dict[str, Any]:
    """Return recall of the two stages against exact search over all tokens, and what a query takes either way.

    Args:
        queries: token sets; None for openings of the index's own documents, which are not found themselves.
    """
    import numpy as np

    from lessen.retrieval.exact import recall

    of, own = "queries", None
    if queries is None:
        own, queries = index.openings(PROBES)
        of = "openings of documents as queries"
    if len(index) < 2 or not queries:
        raise DataError(f"{index.index.path} holds too few documents to judge it by")
    more = 0 if own is None else 1
    k = min(k, len(index) - more)
    wanted = _timed(lambda one: index.exact([one], k + more), queries)
    found = _timed(lambda one: index.search([one], k + more, candidates), queries)
    each = []
    for row, (truth, given) in enumerate(zip(wanted[0], found[0], strict=True)):
        left_out = {own[row]} if own is not None else set()
        right = [name for name in truth.ids if name not in left_out][:k]
        each.append(len(set(right) & set(given.ids)) / max(1, len(right)))
    return {
        "k": k, "candidates": candidates, **recall(np.asarray(each), k), "of": of, "ms_a_query": found[1],
        "ms_exact": wanted[1],
    }  # fmt: skip


def _timed(search: Any, queries: list[Any]) -> tuple[list[Found], float]:
    """Return what each query finds, and the processor's milliseconds of one."""
    search(queries[0])  # what is made at the first search
    start = time.process_time()
    found = [search(query)[0] for query in queries]
    return found, round(1e3 * (time.process_time() - start) / len(queries), 4)
