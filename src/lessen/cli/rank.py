"""`lessen rank`: which columns and crosses say something about the label, before any model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lessen.cli.arguments import new_folder
from lessen.cli.output import AsJson, emit, line, say, table
from lessen.errors import ConfigError

if TYPE_CHECKING:
    from lessen.data.readers import ReadSettings
    from lessen.selection.ranking import Ranking, RankSettings
    from lessen.selection.ranking.scan import ScanSettings

READING, OUTPUT = "Reading", "Output"
VERDICTS = ("missing", "constant", "duplicate", "noise", "key", "leak")


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(rank)


def rank(
    data: Annotated[list[str], typer.Argument(help="CSV, TSV, JSONL, Parquet, libsvm or VW files, globs or folders.")],
    label: Annotated[
        str, typer.Option(help="The column to predict; 'none' for quality and redundancy only.")
    ] = "label",
    label_bins: Annotated[int, typer.Option(min=0, max=250, help="Cut a numeric label into classes.")] = 0,
    crosses: Annotated[int, typer.Option(min=0, help="Pairs of columns to score as one.")] = 1000,
    redundancy: Annotated[int, typer.Option(min=0, help="Best columns to compare with each other.")] = 40,
    select: Annotated[int, typer.Option(min=0, help="Columns to name by 3MR and forward selection.")] = 10,
    known: Annotated[list[str] | None, typer.Option(help="A column that the model already has; repeatable.")] = None,
    transforms: Annotated[str, typer.Option(help="none, minimal, default or wide.")] = "default",
    profile: Annotated[bool, typer.Option("--profile", help="Also describe rows, class by class.")] = False,
    sample: Annotated[int, typer.Option(min=1000, help="Rows kept for everything but the columns.")] = 65_536,
    values: Annotated[int, typer.Option(min=1000, help="Values counted exactly per column.")] = 131_072,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    engine: Annotated[str, typer.Option(help="local, or ray to spread files over a cluster.")] = "local",
    format: Annotated[
        str, typer.Option(help="auto, csv, tsv, jsonl, parquet, libsvm or vw.", rich_help_panel=READING)
    ] = "auto",
    separator: Annotated[str | None, typer.Option(help="Of CSV; found if not given.", rich_help_panel=READING)] = None,
    quote: Annotated[str, typer.Option(help="Quote character of CSV, or none.", rich_help_panel=READING)] = '"',
    encoding: Annotated[str, typer.Option(help="utf8, utf8-lossy, latin-1, ...", rich_help_panel=READING)] = "utf8",
    header: Annotated[bool, typer.Option("--header/--no-header", rich_help_panel=READING)] = True,
    missing: Annotated[
        list[str] | None, typer.Option(help="Text that means missing; repeatable.", rich_help_panel=READING)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the report.", rich_help_panel=OUTPUT)] = None,
    write: Annotated[
        str | None, typer.Option(help="parquet or csv: also write the changed data.", rich_help_panel=OUTPUT)
    ] = None,
    top_crosses: Annotated[int, typer.Option(min=0, help="Crosses to add to it.", rich_help_panel=OUTPUT)] = 5,
    drop: Annotated[
        str, typer.Option(help="Verdicts to drop from it, by comma.", rich_help_panel=OUTPUT)
    ] = "missing,constant,duplicate,noise",
    as_json: AsJson = False,
) -> None:
    """Rank the columns of a table larger than memory, in one pass, by information about the label above chance.

    Example: lessen rank clicks.csv --label click --out ranking --write parquet --top-crosses 5
    """
    from lessen.cli.interrupt import interruptible
    from lessen.cli.progress import Reporting
    from lessen.selection.ranking.ranking import as_dict
    from lessen.selection.ranking.ranking import rank as compute
    from lessen.selection.ranking.report import save

    reading = _reading(format, separator, quote, encoding, header)
    scan = _scan(label, missing, values, sample, seed, reading)
    settings = _settings(scan, label_bins, crosses, redundancy, select, known, transforms, profile, engine)
    target, dropped = _changes(write, drop, out)
    if out is not None:
        new_folder(out)
    with interruptible(), Reporting() as log:
        result = compute(data, settings, log)
        if out is not None:
            save(result, out, data, crosses=top_crosses, drop=dropped, to=target, log=log)  # type: ignore[arg-type]
    if out is not None:
        say(f"the report is in {out}: open {out / 'ranking.html'}")
    if as_json:
        emit(as_dict(result))
        return
    _show(result)
    gone = result.dead(dropped) if target else []
    if gone:
        line(f"dropped from {out / 'data' if out else ''}: {', '.join(gone)} (the evidence is in the report)")


def _reading(format: str, separator: str | None, quote: str, encoding: str, header: bool) -> ReadSettings:
    from lessen.data.readers import FORMATS, ReadSettings

    return ReadSettings(
        format=None if format == "auto" else _one_of("--format", format, FORMATS),  # type: ignore[arg-type]
        separator=separator,
        quote=None if quote == "none" else quote,
        encoding=encoding,
        header=header,
    )


def _scan(
    label: str, missing: list[str] | None, values: int, sample: int, seed: int, read: ReadSettings
) -> ScanSettings:
    from lessen.selection.ranking.scan import ScanSettings

    return ScanSettings(
        label=None if label == "none" else label,
        missing=tuple(missing or ("", "{}")),
        values=values,
        sample=sample,
        seed=seed,
        read=read,
    )


def _changes(write: str | None, drop: str, out: Path | None) -> tuple[str | None, list[str]]:
    """Return the format of the changed data, if any, and the verdicts whose columns they leave out."""
    target = _one_of("--write", write, ("parquet", "csv")) if write else None
    if target and out is None:
        raise ConfigError("--write needs --out DIR, the folder to write to")
    names = [name for name in drop.split(",") if name]
    return target, [_one_of("--drop", name, VERDICTS) for name in names]


def _settings(
    scan: ScanSettings,
    label_bins: int,
    crosses: int,
    redundancy: int,
    select: int,
    known: list[str] | None,
    transforms: str,
    profile: bool,
    engine: str,
) -> RankSettings:
    from lessen.selection.ranking import RankSettings

    return RankSettings(
        scan=scan,
        label_bins=label_bins,
        crosses=crosses,
        redundancy=redundancy,
        select=select,
        known=tuple(known or ()),
        profile=profile,
        transforms=_one_of("--transforms", transforms, ("none", "minimal", "default", "wide")),  # type: ignore[arg-type]
        engine=_one_of("--engine", engine, ("local", "ray")),  # type: ignore[arg-type]
    )


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{option} {value!r} is not one of {', '.join(allowed)}")
    return value


def _show(ranking: Ranking) -> None:
    table(
        ["column", "verdict", ">best", ">score", ">plain MI", ">p", ">covered %", ">values", "why"],
        [
            (
                row.name, row.verdict, f"{row.best_score:.5f}", f"{row.score:.5f}", f"{row.mutual:.5f}",
                f"{row.p_value:.2f}", f"{row.coverage:.1f}", f"{row.cardinality:,.0f}", row.reason,
            )
            for row in ranking.columns
        ],
        title=f"{ranking.rows:,} rows; score: nats of information about {ranking.label} above chance, "
        "best: in the form of the column that says most",
    )  # fmt: skip
    line(ranking.floor.statement)
    if ranking.tried.pairs and ranking.label:
        line(ranking.tried.statement)
    for cross in ranking.useful_crosses(10):
        line(f"cross {cross.first} * {cross.second}: held-out log loss falls by {cross.gain:.5f}")
    if ranking.forward:
        line("forward selection: " + ", ".join(name for name, _ in ranking.forward))
