"""`lessen bars`: the published click benchmark, run on files of your own and laid beside the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lessen.cli.output import AsJson, emit, line, say, table
from lessen.errors import ConfigError

if TYPE_CHECKING:
    from lessen.tasks.ctr.bars import Agreement

app = typer.Typer(
    name="bars", help="The BARS-CTR benchmark: published splits, settings and figures.", no_args_is_help=True
)


@app.command("list")
def list_bars(as_json: AsJson = False) -> None:
    """List data sets and models with their published AUC.

    Example: lessen bars list
    """
    from lessen.tasks.ctr.bars import published_models, variants

    found = {dataset: published_models(dataset) for dataset in variants()}
    if as_json:
        emit({dataset: {name: p.model_dump() for name, p in models.items()} for dataset, models in found.items()})
        return
    names = list(dict.fromkeys(name for models in found.values() for name in models))
    rows = [(d, *(f"{models[n].auc:.4f}" if n in models else "-" for n in names)) for d, models in found.items()]
    table(("data set", *(f">{name}" for name in names)), rows, title="published test AUC; -: nothing was published")


@app.command("run")
def run_one(
    dataset: Annotated[str, typer.Argument(help="Such as Frappe_x1 or Criteo_x4_001; lessen bars list names them.")],
    model: Annotated[str, typer.Argument(help="Such as deepfm.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of train.csv, valid.csv and test.csv (default: what `data get` got).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for encoded data, checkpoints, results.")] = Path(
        "out/bars"
    ),
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Repeatable (default: the published seed).")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most (default: the published cap).")] = None,
    updates: Annotated[
        str, typer.Option(help="dense as published, or lazy-adam: faster, the penalty on touched rows only.")
    ] = "dense",
    own_split: Annotated[
        bool, typer.Option("--own-split", help="Take files whose MD5 is not the published one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model with its published settings and judge it on the test part.

    A stopped run continues from its last epoch. Start it with torchrun to train in several processes.

    Example: lessen bars run Frappe_x1 deepfm --data frappe --seed 2021 --seed 2022 --seed 2023
    """
    from lessen.cli.progress import Reporting
    from lessen.tasks.ctr.bars import RunSettings, load_recipe, read_result, run_bars
    from lessen.train.parallel import group

    recipe = load_recipe(dataset, model)
    if updates not in ("dense", "lazy-adam"):
        raise ConfigError(f"--updates {updates!r} is not one of dense, lazy-adam")
    paths = []
    with group() as ranks, Reporting() as log:
        for number in seed or [recipe.training.seed]:
            settings = RunSettings(number, epochs, updates, own_split)  # type: ignore[arg-type]
            paths.append(run_bars(recipe, out, data, settings, log))
    if ranks.first:
        show([read_result(path) for path in paths], as_json)
        say(f"results: {', '.join(map(str, paths))}")


@app.command("check")
def check(
    results: Annotated[list[Path], typer.Argument(help="JSON files that `lessen bars run` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Lay results beside the published figures, with intervals; several seeds of a model are taken together.

    Example: lessen bars check out/bars/*.json
    """
    from lessen.tasks.ctr.bars import read_result

    show([read_result(path) for path in results], as_json)


def show(results: list[dict[str, object]], as_json: bool) -> None:
    """Print the comparison as a table or as JSON."""
    from dataclasses import asdict

    from lessen.tasks.ctr.bars import agreement

    rows = agreement(results)
    if as_json:
        emit([{**asdict(row), "inside": row.inside} for row in rows])
        return
    table(
        ("data set", "model", "metric", ">seeds", ">ours", "95 % interval", ">published", ">difference", ""),
        [
            (
                row.dataset,
                row.model,
                row.metric,
                len(row.seeds),
                f"{row.value:.5f}",
                f"{row.low:.5f} to {row.high:.5f}",
                *_published(row),
            )
            for row in rows
        ],
    )
    for note in dict.fromkeys(f"{row.dataset} {row.model}: {row.note}" for row in rows if row.note):
        line(note)
    for row in rows:
        if row.published_deviation is not None:
            line(
                f"{row.dataset} {row.model}: five published seeds have a standard deviation of "
                f"{row.published_deviation:.5f} {row.metric}"
            )
    line("BARS shows one seed, mostly the best of a grid on the test part; its authors call 0.001 AUC a reproduction.")


def _published(row: Agreement) -> tuple[str, str, str]:
    if row.published is None:
        return "-", "-", "no published figure"
    verdict = "published lies inside" if row.inside else "published lies outside"
    return f"{row.published:.5f}", f"{row.value - row.published:+.5f}", verdict
