"""Who makes the vectors of `lessen index`: readers of texts and pictures, queries, and adapters to a new encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.output import AsJson, emit, line
from lessen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lessen.log import Log
    from lessen.retrieval.folder import IndexFolder
    from lessen.tasks.retrieval.readers import PictureReader, TextReader


def adapt(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index of texts.")],
    encoder: Annotated[str, typer.Option(help="The new encoder: a Hugging Face folder, or an artifact of lessen.")],
    texts: Annotated[Path, typer.Option(help="A few thousand texts that both encoders read: .txt, .jsonl, ...")],
    out: Annotated[Path, typer.Option("--out", help="File of the adapter to write.")],
    rank: Annotated[int | None, typer.Option(min=0, help="Directions beside the turn; default a quarter.")] = None,
    column: Annotated[str, typer.Option(help="Column of texts.")] = "text",
    as_json: AsJson = False,
) -> None:
    """Fit, in closed form, what lets a new encoder search the index of the old one; documents stay as they are.

    Example: lessen index adapt news.index --encoder minilm-4bit --texts sample.txt --out to-old.safetensors
    """
    import torch

    from lessen.cli.arguments import new_file
    from lessen.cli.progress import Reporting
    from lessen.retrieval.adapter import QueryAdapter
    from lessen.retrieval.folder import IndexFolder
    from lessen.tasks.retrieval.readers import read_texts

    index = IndexFolder.open(folder)
    made = index.manifest.encoder
    if made is None or made["kind"] != "text":
        raise ConfigError(f"{folder} was not made of texts; fit its adapter in Python (lessen.retrieval.adapter)")
    target, pairs = new_file(out, ".safetensors"), list(read_texts(texts, column))
    names, said = [name for name, _ in pairs], [text for _, text in pairs]
    with Reporting() as log:
        old_reader = text_reader(made["name"], made, log)
        index.check_encoder(old_reader.identity, "the encoder that the index names")
        new_reader = text_reader(encoder, made, log)
        old, new = old_reader.vectors(said, names), new_reader.vectors(said, names)
    held = max(2, len(pairs) // 5)
    if len(pairs) - held < 20:
        raise DataError(f"{texts} holds {len(pairs)} texts; an adapter needs at least 25, better a few thousand")
    tried = QueryAdapter.fitted(new[held:], old[held:], rank)
    cosines = torch.nn.functional.cosine_similarity
    fitted = QueryAdapter.fitted(new, old, rank)
    fitted.save(target, new_reader.identity, old_reader.identity)
    known = {"adapter": str(out), "pairs": len(pairs), "rank": fitted.rank,
             "cosine": round(float(cosines(tried(new[:held]), old[:held]).mean()), 5)}  # fmt: skip
    if new.shape == old.shape:
        known["cosine_before"] = round(float(cosines(new[:held], old[:held]).mean()), 5)
    if as_json:
        emit(known)
        return
    before = f" (without: {known['cosine_before']:.4f})" if "cosine_before" in known else ""
    line(f"wrote {out}: cosine to the old vectors {known['cosine']:.4f} on {held} texts that were left out{before}")


def text_reader(name: str, made: dict[str, Any], log: Log | None = None) -> TextReader:
    """Return an encoder of texts with the pooling and length that an index was made with.

    Args:
        name: a Hugging Face folder, or an artifact, which reads by the tokenizer of the index's own encoder.
    """
    from lessen.artifact import folder as artifact
    from lessen.files import sha256
    from lessen.log import SILENT
    from lessen.tasks.retrieval.encoding import SentenceEncoder
    from lessen.tasks.retrieval.readers import TextReader

    manifest = Path(name) / artifact.MANIFEST
    knobs = made["pooling"], made["normalise"], made["length"]
    if not manifest.is_file():
        return TextReader(name, *knobs, log=log or SILENT)
    model = artifact.load(Path(name), model=SentenceEncoder(made["name"], *knobs).build())
    return TextReader(made["name"], *knobs, weights=(model, sha256(manifest)), log=log or SILENT)


def reader_of(
    texts: Path | None, pictures: Path | None, encoder: str, length: int, log: Log
) -> TextReader | PictureReader | None:
    """Return what reads the texts or pictures of an index; None for vectors."""
    from lessen.tasks.retrieval.readers import PictureReader, TextReader

    if texts is not None:
        return TextReader(encoder, length=length, log=log)
    return PictureReader(encoder, log=log) if pictures is not None else None


def queries_of(
    index: IndexFolder, text: list[str] | None, texts: Path | None, vectors: Path | None, picture: list[Path] | None,
    encoder: str | None, column: str | None, ids: str, adapter: Path | None = None,
) -> tuple[list[str], Any, dict[str, Any] | None]:  # fmt: skip
    """Return what each query is called, the vectors of all, and who made them (the old encoder, where adapted)."""
    names, asked, identity = _asked(index, text, texts, vectors, picture, encoder, column, ids)
    if adapter is None:
        return names, asked, identity
    from lessen.retrieval.adapter import QueryAdapter

    made, new, old = QueryAdapter.load(adapter)
    if (new or {}).get("digest") != (identity or {}).get("digest"):
        raise ConfigError(f"{adapter} leads from another encoder than {encoder or 'the index'}; fit one for it")
    if asked.shape[1] != made.new:
        raise ConfigError(f"{adapter} takes vectors of width {made.new}, the queries have {asked.shape[1]}")
    return names, made(asked), old


def _asked(
    index: IndexFolder, text: list[str] | None, texts: Path | None, vectors: Path | None, picture: list[Path] | None,
    encoder: str | None, column: str | None, ids: str,
) -> tuple[list[str], Any, dict[str, Any] | None]:  # fmt: skip
    from lessen.retrieval.sources import read_all
    from lessen.tasks.retrieval.readers import PictureReader, read_texts

    if sum(bool(given) for given in (text, texts, vectors, picture)) != 1:
        raise ConfigError("give one of --text, --texts, --vectors and --picture")
    if vectors is not None:
        batch = read_all(vectors, column or "vector", ids)
        return batch.ids, batch.vectors, None
    made = index.manifest.encoder
    if made is None:
        raise ConfigError(f"{index.path} was made of vectors and knows no encoder; give queries as --vectors")
    if picture:
        if made["kind"] != "pictures":
            raise ConfigError(f"{index.path} holds texts; give queries as --text")
        pictures = PictureReader(encoder or made["name"])
        return [str(path) for path in picture], pictures.vectors(picture), pictures.identity
    if made["kind"] != "text":
        raise ConfigError(f"{index.path} holds pictures; give queries as --picture")
    pairs = [(one, one) for one in text or ()] if texts is None else list(read_texts(texts, column or "text", ids))
    reader = text_reader(encoder or made["name"], made)
    names = [name for name, _ in pairs]
    said = [repr(name[:40]) for name in names]
    return names, reader.vectors([one for _, one in pairs], said, "query", cut=False), reader.identity
