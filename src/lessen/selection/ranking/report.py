"""A ranking as files: Parquet tables, one JSON document, one page that opens offline; and the data rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from lessen.data.readers import find_files
from lessen.errors import DataError, LessenError, OutputError
from lessen.files import atomic_folder, atomic_write, dump_json
from lessen.log import SILENT, Log
from lessen.selection.ranking.columns import ColumnReport
from lessen.selection.ranking.pairs import Redundancy
from lessen.selection.ranking.ranking import Ranking, as_dict
from lessen.selection.ranking.rewrite import rewrite

_BAR = 12.0
_HEAT = 40


def save(
    ranking: Ranking,
    folder: Path,
    paths: Sequence[Path | str] = (),
    crosses: int = 0,
    drop: Sequence[str] = ("missing", "constant", "duplicate", "noise"),
    to: Literal["parquet", "csv"] | None = None,
    log: Log = SILENT,
) -> None:
    """Write the ranking into a new folder, whole or not at all, and then the data; a report outlives data that fail.

    Files: `columns.parquet`, `crosses.parquet`, `redundancy.parquet`, `ranking.json`, `ranking.html`; with `to` also
    `data/`: the files of `paths` with the best `crosses` useful crosses added and columns of the verdicts `drop` gone,
    and in the report what was dropped, each column with its evidence.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
        DataError: the data cannot be read again; the report is there.
    """
    chosen = ranking.useful_crosses(crosses) if to is not None else []
    written = (
        {
            "dropped": [ranking.column(name).as_dict() for name in ranking.dead(drop)],
            "added": [f"{cross.first}*{cross.second}" for cross in chosen],
        }
        if to is not None
        else None
    )
    with atomic_folder(folder) as temporary:
        _table([_flat(row.as_dict()) for row in ranking.columns]).write_parquet(temporary / "columns.parquet")
        _table([vars(cross) for cross in ranking.crosses]).write_parquet(temporary / "crosses.parquet")
        _table([vars(pair) for pair in ranking.redundancy]).write_parquet(temporary / "redundancy.parquet")
        atomic_write(temporary / "ranking.json", dump_json({**as_dict(ranking), "written": written}))
        atomic_write(temporary / "ranking.html", page(ranking, written))
    if to is None:
        return
    pairs = [(cross.first, cross.second) for cross in chosen]
    try:
        with atomic_folder(folder / "data") as data:
            rewrite(find_files(paths), ranking.dead(drop), pairs, data, ranking.settings.scan.read, to, log)
    except LessenError as error:
        kind = OutputError if isinstance(error, OutputError) else DataError
        raise kind(f"{error} (the report is in {folder}, without data)") from error


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame({"none": []})


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    repetitions = row.pop("repetitions")
    return row | {f"values {bound}": count for bound, count in repetitions.items()}


def page(ranking: Ranking, written: Mapping[str, Any] | None = None) -> str:
    """Return one HTML page with bars and a redundancy heat map; it loads nothing from a network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lessen.selection.ranking", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    best = max((row.best_score for row in ranking.columns if row.verdict not in ("label", "leak")), default=1.0) or 1.0
    useful = ranking.useful_crosses(_HEAT)
    gain = max((cross.gain for cross in useful), default=1.0)
    return environment.get_template("page.html.jinja").render(
        files=", ".join(ranking.files[:3]) + (" ..." if len(ranking.files) > 3 else ""),
        rows=f"{ranking.rows:,}",
        label=ranking.label or "none",
        classes=list(ranking.classes.items())[:12],
        statement=ranking.floor.statement,
        columns=[_column(row, best) for row in ranking.columns],
        written=written,
        pairs=ranking.tried.statement if ranking.tried.pairs and ranking.label else "",
        crosses=[vars(cross) | {"width": round(_BAR * cross.gain / gain, 2)} for cross in useful],
        selected=[name for name, _ in ranking.selected],
        forward=ranking.forward,
        transforms=[vars(item) for item in ranking.transforms if item.gain > 0][:20],
        heat=_heat(ranking.redundancy),
        profile=[(m, [g["mean"] for g in v["groups"].values()]) for m, v in ranking.profile.items()],
        profile_groups=list(next(iter(ranking.profile.values()))["groups"]) if ranking.profile else [],
        footer=f"Pairs, transformations and surrogates use {ranking.sampled:,} rows drawn evenly from the whole data.",
    )


def _column(row: ColumnReport, best: float) -> dict[str, Any]:
    width = min(max(row.best_score / best, 0.0), 1.0) * _BAR
    error = f" ± {100 * row.cardinality_error:.1f}%" if row.cardinality_error else ""
    return row.as_dict() | {"width": round(width, 2), "distinct": f"{row.cardinality:,.0f}{error}"}


def _heat(pairs: Sequence[Redundancy]) -> list[tuple[str, list[dict[str, Any]]]]:
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))[:_HEAT]
    shares = {frozenset((pair.first, pair.second)): pair.share for pair in pairs}
    return [
        (
            one,
            [
                {"share": round(min(max(share, 0.0), 1.0), 3), "title": f"{one} / {two}: {share:.3f}"}
                for two in names
                for share in [1.0 if one == two else shares.get(frozenset((one, two)), 0.0)]
            ],
        )
        for one in names
    ]
