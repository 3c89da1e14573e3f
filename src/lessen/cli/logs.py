"""`lessen data infer` and `lessen data encode`: from a team's own logs to a data set that models train on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lessen.cli.arguments import Seed, new_file
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size, table

if TYPE_CHECKING:
    from lessen.data.encode import SplitRule

Files = Annotated[
    list[str],
    typer.Argument(help="Log files, globs or folders: CSV, TSV, JSONL, Parquet, libsvm, VW; plain, gz, zst, bz2, xz."),
]


def register(data: typer.Typer) -> None:
    """Add the verbs of this file to `lessen data`."""
    data.command("infer")(infer)
    data.command("encode")(encode)


def infer(
    files: Files,
    label: Annotated[str | None, typer.Option("--label", help="Name of the label column.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New schema file (default: print it).")] = None,
    quote: Annotated[
        str | None, typer.Option("--quote", help="Quote of CSV and TSV, or none (default: found out).")
    ] = None,
    encoding: Annotated[str, typer.Option("--encoding", help="utf8, utf8-lossy, utf-16, latin-1, ...")] = "utf8",
    as_json: AsJson = False,
) -> None:
    """Guess the schema of logs and say why each field was taken for what it is; read it and edit it.

    Example: lessen data infer clicks.csv --out schema.yaml
    """
    from lessen.cli.output import Notes
    from lessen.data.infer import infer as infer_fields
    from lessen.errors import OutputError
    from lessen.files import atomic_write

    if out is not None and out.exists():
        raise OutputError(f"{out} already exists; it may hold your edits: remove it or choose another --out")
    if out is not None:
        new_file(out)
    found = infer_fields(files, label, quote, encoding, Notes())
    if out is not None:
        atomic_write(out, found.text())
    if as_json:
        emit({"schema": found.schema.model_dump(mode="json"), "reasons": found.reasons})
    elif out is None:
        line(found.text().rstrip("\n"))
    else:
        rows = [(f.name, f.kind, found.reasons[f.name].partition(": ")[2]) for f in found.schema.fields]
        table(("field", "kind", "what was seen, and why"), rows)
        line(f"\n{out}: read it, edit it, then: lessen data encode {shlex.join(files)} --schema {out} --out data")


def encode(
    files: Files,
    schema: Annotated[Path, typer.Option("--schema", "-s", help="Schema file (see: lessen data infer).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the encoded data.")],
    validation: Annotated[
        list[str] | None, typer.Option("--validation", help="Validation file or glob; FILES are then for training.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option("--test", help="Test file or glob; goes with --validation.")] = None,
    split: Annotated[
        str, typer.Option("--split", help="fraction (at random) or time (oldest rows train).")
    ] = "fraction",
    fractions: Annotated[
        str, typer.Option("--fractions", help="Shares of train, validation and test.")
    ] = "0.8,0.1,0.1",
    seed: Seed = 0,
    skip_bad: Annotated[
        int, typer.Option("--skip-bad", min=0, help="Leave up to so many bad rows out; they are counted and shown.")
    ] = 0,
    quote: Annotated[str | None, typer.Option("--quote", help="Instead of the schema's: a character, or none.")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Instead of the schema's: latin-1, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Encode logs into arrays that training reads in place; all of them or nothing.

    Example: lessen data encode clicks.csv --schema schema.yaml --out data
    """
    from lessen.cli.progress import Reporting
    from lessen.data.encode import encode_logs
    from lessen.data.schema import check_schema, load_schema

    rule, sources = _rule(split, fractions, seed, files, validation, test)
    changes = {name: value for name, value in (("quote", quote), ("encoding", encoding)) if value is not None}
    chosen = check_schema(load_schema(schema).model_copy(update=changes))
    with interruptible(), Reporting() as log:
        dataset = encode_logs(sources, chosen, out, rule, log, skip_bad=skip_bad)
    fields: list[tuple[str, str, str]] = [
        (f.name, f.kind, f"{dataset.layout.segment(f.name).rows:,}") for f in dataset.layout.fields
    ]
    fields += [(name, "numeric", "") for name in dataset.layout.numeric]
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if as_json:
        emit(
            {
                "out": str(out),
                "rows": dataset.rows,
                "table_rows": dataset.layout.rows,
                "bytes": total,
                "fingerprint": dataset.fingerprint,
                "left_out": dataset.left_out,
            }
        )
        return
    table(("field", "kind", ">rows of the table"), fields)
    counts = ", ".join(f"{count:,} {name}" for name, count in dataset.rows.items())
    for left_out in dataset.left_out:
        line(f"left out: {left_out}")
    line(f"\n{out}: {counts} rows, {size(total)}; train and compress a model with:")
    line(f"lessen compress reference --task ctr-logs:data={out} --step emb-rowwise-quant --out small")


def _rule(
    split: str, fractions: str, seed: int, files: list[str], validation: list[str] | None, test: list[str] | None
) -> tuple[SplitRule, dict[str, list[str]] | list[str]]:
    """Return how rows are split and the files. Raises ConfigError for options that do not go together."""
    from lessen.data.encode import SplitRule
    from lessen.errors import ConfigError

    if validation or test:
        if not (validation and test):
            raise ConfigError("--validation and --test go together: give files for both, or for neither")
        return SplitRule(by="files"), {"train": files, "validation": validation, "test": test}
    if split not in ("fraction", "time"):
        raise ConfigError(f"--split {split!r} is not accepted: it is fraction or time")
    try:
        train, held, last = (float(part) for part in fractions.split(","))
    except ValueError as error:
        raise ConfigError(f"--fractions {fractions!r}: expected three numbers such as 0.8,0.1,0.1") from error
    return SplitRule(by="time" if split == "time" else "fraction", fractions=(train, held, last), seed=seed), files
