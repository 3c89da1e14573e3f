"""`lessen index`: vectors in a folder that knows whose they are, what they cost, and how much of exact search it finds.

Every verb opens the folder whole: a file that is torn or was changed is named before anything is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli import index_multi
from lessen.cli.index_judged import judged, judged_on
from lessen.cli.index_readers import adapt, queries_of, reader_of
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size, table
from lessen.errors import MAX_SEED, ConfigError, DataError

if TYPE_CHECKING:
    from lessen.retrieval.folder import Found, IndexFolder
    from lessen.retrieval.multi import MultiFolder
    from lessen.retrieval.sources import Batch

app = typer.Typer(name="index", help="Store and search retrieval vectors at a few bytes each.", no_args_is_help=True)
app.command()(adapt)
Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.")]
Vectors = Annotated[Path | None, typer.Option(help="Vectors: .npy, .fvecs or .parquet.")]
Texts = Annotated[Path | None, typer.Option(help="Texts: .txt (one a line), .jsonl, .parquet, .csv.")]
Column = Annotated[str | None, typer.Option(help="Column of vectors or texts; default: vector, or text.")]
Names = Annotated[str, typer.Option("--ids", help="Column of names.")]
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Of token sets: documents that are ordered by all their tokens; default 100.")
]
SAMPLE = 16_384
"""Vectors that codebooks are learned from at most."""
TEXTS_AT_ONCE = 1024


@app.command()
def build(
    folder: Folder,
    vectors: Vectors = None,
    texts: Texts = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of pictures.")] = None,
    encoder: Annotated[str, typer.Option(help="Hugging Face folder, or minilm-l6.")] = "minilm-l6",
    form: Annotated[
        str | None,
        typer.Option(
            help="flat, int8, bits4|2|1, pq:groups=N; +int8 or +flat orders the best again. Default: int8; bits1 with "
            "--multi."
        ),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="cosine (the default) or dot.")] = None,
    column: Column = None,
    ids: Names = "id",
    length: Annotated[int, typer.Option(min=2, help="Tokens of a text that are read.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of turns and codebooks.")] = 0,
    multi: Annotated[bool, typer.Option("--multi", help="Keep every token of a text, for late interaction.")] = False,
    encoding: Annotated[
        str, typer.Option(help="With --multi: repetitions, bits and block of the one vector (MUVERA).")
    ] = "20,5,16",
    tokens: Annotated[str, typer.Option(help="With --multi: float32, float16 or int8 tokens.")] = "float16",
    as_json: AsJson = False,
) -> None:
    """Make an index, or add to one what it does not hold yet: a build that was killed is finished by the same command.

    Example: lessen index build news.index --texts news.jsonl --form bits1+int8
    """
    from lessen.cli.progress import Reporting

    if sum(source is not None for source in (vectors, texts, pictures)) != 1:
        raise ConfigError("give one of --vectors, --texts and --pictures")
    if metric not in (None, "cosine", "dot"):
        raise ConfigError(f"--metric {metric!r} is not accepted; allowed: cosine, dot")
    started = time.process_time()
    if multi:
        _build_multi(folder, texts, encoder, form, encoding, tokens, column, ids, length, seed, as_json)
        return
    with interruptible(), Reporting() as log:
        index = _opened(folder) if (folder / "index.json").exists() else None
        if index is not None and index.manifest.multi is not None:
            raise ConfigError(f"{folder} holds token sets; add to it with --multi")
        if index is not None:
            index_multi.check_same(folder, form=(form, index.manifest.form), metric=(metric, index.manifest.metric))
        reader = reader_of(texts, pictures, encoder, length, log)
        identity = None if reader is None else reader.identity
        if index is not None:
            index.check_encoder(identity, "what is added")
        batches = _batches(vectors, texts, pictures, reader, column, ids, index)
        added, skipped = 0, 0
        if index is None:
            index, batches = _created(folder, form or "int8", metric or "cosine", identity, seed, batches)
        seen: set[str] = set()
        for batch in batches:
            twice = next((name for name in batch.ids if name in seen), None)
            if twice is not None:
                raise DataError(f"the id {twice!r} stands twice in what is added; give each document its own")
            seen.update(batch.ids)
            new = index.add(batch.ids, batch.vectors, identity, there="skip")
            added, skipped = added + new, skipped + len(batch.ids) - new
            log.progress("added", len(index), len(index))
    known = {"index": str(folder), "added": added, "there": skipped, **_sizes(index)}
    known["cpu_seconds"] = round(time.process_time() - started, 2)
    if as_json:
        emit(known)
        return
    there = f" ({skipped} were there)" if skipped else ""
    line(
        f"added {added} documents{there}: {len(index)} in {folder}, form {index.manifest.form}, "
        f"{index.row_bytes} bytes a document and {size(index.shared_bytes)} shared, {size(index.file_bytes)} on disk"
    )


@app.command()
def search(
    folder: Folder,
    text: Annotated[list[str] | None, typer.Option(help="A query; repeatable.")] = None,
    texts: Texts = None,
    vectors: Vectors = None,
    picture: Annotated[list[Path] | None, typer.Option(help="A picture to look for; repeatable.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder of the queries, or its artifact; default: the index's own.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="What `index adapt` wrote, for another encoder.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Documents of each query.")] = 10,
    candidates: Candidates = None,
    exact: Annotated[bool, typer.Option("--exact", help="Of token sets: look at all documents.")] = False,
    column: Column = None,
    ids: Names = "id",
    as_json: AsJson = False,
) -> None:
    """Find the nearest documents of each query.

    Example: lessen index search news.index --text "storm over the harbour"
    """
    index = _opened(folder)
    if index.manifest.multi is not None:
        if vectors is not None or picture or adapter is not None:
            raise ConfigError(f"{folder} holds token sets of texts; give queries as --text or --texts")
        sets = _sets(index)
        names, asked = index_multi.queries_of(sets, text, texts, encoder, column or "text", ids)
        found = sets.exact(asked, k) if exact else sets.search(asked, k, candidates or index_multi.CANDIDATES)
        _show(names, found, as_json)
        return
    if exact or candidates is not None:
        raise ConfigError(f"{folder} holds one vector a document: no --exact, no --candidates")
    names, asked, identity = queries_of(index, text, texts, vectors, picture, encoder, column, ids, adapter)
    index.check_encoder(identity, "the query")
    _show(names, index.search(asked, k), as_json)


@app.command()
def report(
    folder: Folder,
    queries: Annotated[
        Path | None,
        typer.Option(help="Vectors of queries, or texts for token sets; default: its own."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The vectors that were indexed, as a file, for exact search with --queries.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Neighbours that count.")] = 10,
    candidates: Candidates = None,
    column: Column = None,
    ids: Names = "id",
    as_json: AsJson = False,
) -> None:
    """Say what the index costs and how much of exact search it finds, with an interval over queries.

    Example: lessen index report news.index -k 10
    """
    index = _opened(folder)
    if index.manifest.multi is not None:
        if against is not None:
            raise ConfigError(f"{folder} holds the tokens that exact search needs; leave --against out")
        _report_multi(index, queries, k, candidates, column, ids, as_json)
        return
    if (queries is None) != (against is None):
        raise ConfigError("--queries and --against belong together: exact search needs the vectors that were indexed")
    if candidates is not None:
        raise ConfigError(f"{folder} holds one vector a document; --candidates is for indexes built with --multi")
    known = {"index": str(folder), "form": index.manifest.form, "metric": index.manifest.metric, **_sizes(index)}
    known |= judged(index, k) if queries is None else judged_on(index, queries, against, k, column, ids)
    if as_json:
        emit(known)
        return
    ends = "no interval" if known["low"] is None else f"{known['low']:.3f} to {known['high']:.3f}"
    line(f"{folder}: {len(index)} documents of width {index.dim}, form {index.manifest.form}")
    line(f"recall@{known['k']} against exact search: {known['recall']:.3f} ({ends}, {known['queries']} {known['of']})")
    line(
        f"{index.row_bytes} bytes a document ({4 * index.dim / index.row_bytes:.1f} times less than float32), "
        f"{size(index.shared_bytes)} shared, {size(index.file_bytes)} on disk; {known['ms_a_query']:.3f} ms a query"
    )


@app.command()
def remove(
    folder: Folder,
    names: Annotated[list[str], typer.Argument(metavar="ID...", help="Names of documents.")],
    as_json: AsJson = False,
) -> None:
    """Remove documents; none is removed where one of them is not there.

    Example: lessen index remove news.index 17 23
    """
    index = _opened(folder)
    index.remove(names)
    if as_json:
        emit({"index": str(folder), "removed": len(names), **_sizes(index)})
    else:
        line(f"removed {len(names)} documents; {len(index)} are left")


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="faiss file to write; names go to OUT.ids, one a line.")],
) -> None:
    """Write a faiss file of an index of the form flat or pq.

    Example: lessen index export news.index --out news.faiss
    """
    from lessen.cli.arguments import new_file
    from lessen.retrieval.faiss_files import export as write

    index = _opened(folder)
    if index.manifest.multi is not None:
        raise ConfigError(
            f"{folder} holds token sets, which no faiss file has a place for; build an index without --multi to export"
        )
    write(index.modules, index.kept_rows(), list(index.ids()), new_file(out))
    line(f"wrote {out} ({len(index)} vectors) and {out}.ids")


def _build_multi(
    folder: Path, texts: Path | None, encoder: str, form: str | None, encoding: str, held: str, column: str | None,
    ids: str, length: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    from lessen.cli.progress import Reporting
    from lessen.tasks.retrieval.readers import TextReader

    if texts is None:
        raise ConfigError("--multi keeps the tokens of texts; give --texts, not --vectors or --pictures")
    started = time.process_time()
    with interruptible(), Reporting() as log:
        reader = TextReader(encoder, length=length, log=log)
        made, added, skipped = index_multi.build(
            folder, texts, reader, form, encoding, held, column or "text", ids, seed, log
        )
    known = {"index": str(folder), "added": added, "there": skipped, **index_multi.sizes(made)}
    known["cpu_seconds"] = round(time.process_time() - started, 2)
    if as_json:
        emit(known)
        return
    there = f" ({skipped} were there)" if skipped else ""
    line(
        f"added {added} documents{there}: {len(made)} in {folder}, one vector of {made.index.row_bytes} bytes and "
        f"{size(int(made.token_bytes))} of {made.held} tokens a document, {size(made.index.file_bytes)} on disk"
    )


def _report_multi(
    index: IndexFolder, queries: Path | None, k: int, candidates: int | None, column: str | None, ids: str,
    as_json: bool,
) -> None:  # fmt: skip
    sets = _sets(index)
    asked = None if queries is None else index_multi.queries_of(sets, None, queries, None, column or "text", ids)[1]
    wanted = candidates or index_multi.CANDIDATES
    known = {"index": str(index.path), "form": index.manifest.form, **index_multi.sizes(sets)}
    known |= index_multi.judged(sets, asked, k, wanted)
    if as_json:
        emit(known)
        return
    ends = "no interval" if known["low"] is None else f"{known['low']:.3f} to {known['high']:.3f}"
    line(f"{index.path}: {len(index)} documents of {sets.held} tokens of width {known['dim']}, form {known['form']}")
    line(
        f"recall@{known['k']} of {wanted} candidates against exact search over all tokens: {known['recall']:.3f} "
        f"({ends}, {known['queries']} {known['of']})"
    )
    line(
        f"{index.row_bytes} bytes a document and {size(int(sets.token_bytes))} of tokens, {size(index.file_bytes)} on "
        f"disk; {known['ms_a_query']:.3f} ms a query, exact search {known['ms_exact']:.3f} ms"
    )


def _sets(index: IndexFolder) -> MultiFolder:
    from lessen.retrieval.multi import MultiFolder

    return MultiFolder(index)


def _show(names: list[str], found: list[Found], as_json: bool) -> None:
    if as_json:
        emit([{"query": name, "ids": one.ids, "scores": one.scores} for name, one in zip(names, found, strict=True)])
        return
    for name, one in zip(names, found, strict=True):
        table(["query", ">score", "document"], _rows(name, one))


def _opened(folder: Path) -> IndexFolder:
    from lessen.retrieval.folder import IndexFolder

    return IndexFolder.open(folder)


def _sizes(index: IndexFolder) -> dict[str, Any]:
    return {
        "documents": len(index),
        "dim": index.dim,
        "bytes_a_document": index.row_bytes,
        "shared_bytes": index.shared_bytes,
        "file_bytes": index.file_bytes,
    }


def _batches(
    vectors: Path | None, texts: Path | None, pictures: Path | None, reader: Any, column: str | None, ids: str,
    index: IndexFolder | None,
) -> Iterator[Batch]:  # fmt: skip
    """Yield names and vectors of what an index does not hold; names alone say what is there, before any is encoded."""
    from lessen.retrieval.sources import Batch, read_vectors
    from lessen.tasks.retrieval.readers import pictures_of, read_texts

    if vectors is not None:
        yield from read_vectors(vectors, column or "vector", ids)
        return
    pairs: Iterator[tuple[str, Any]]
    if texts is not None:
        pairs = read_texts(texts, column or "text", ids)
    else:
        assert pictures is not None
        pairs = ((path.relative_to(pictures).as_posix(), path) for path in pictures_of(pictures))
    while some := list(islice(pairs, TEXTS_AT_ONCE)):
        names = [name for name, _ in some]
        there = [False] * len(some) if index is None else index.has(names)
        new = [pair for pair, old in zip(some, there, strict=True) if not old]
        if not new:
            continue
        own = [name for name, _ in new]
        made = (
            reader.vectors([item for _, item in new], own) if texts is not None else reader.vectors([p for _, p in new])
        )
        yield Batch(own, made)


def _created(
    folder: Path, form: str, metric: Any, identity: dict[str, Any] | None, seed: int, batches: Iterator[Batch]
) -> tuple[IndexFolder, Iterator[Batch]]:
    """Make the index with what its form learns from the first vectors; return it with all batches, those included."""
    from itertools import chain

    import torch

    from lessen.cli.arguments import new_folder
    from lessen.retrieval.folder import IndexFolder
    from lessen.retrieval.forms import parse_form

    learns = parse_form(form).learns
    new_folder(folder)
    first: list[Batch] = []
    while (batch := next(batches, None)) is not None:
        first.append(batch)
        if not learns or sum(len(one.ids) for one in first) >= SAMPLE:
            break
    if not first:
        raise DataError("there is nothing to index")
    sample = torch.cat([one.vectors for one in first])[:SAMPLE]
    return IndexFolder.create(folder, form, sample, metric, identity, seed), chain(first, batches)


def _rows(name: str, found: Found) -> list[tuple[str, str, str]]:
    return [
        (name if not place else "", f"{score:.4f}", document)
        for place, (document, score) in enumerate(zip(found.ids, found.scores, strict=True))
    ]
