"""`lessen compress`, `lessen profile` and `lessen verify`: one model at a time."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lessen.cli.arguments import Device, Seed, Threads, new_folder, parse_step, task_of
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size
from lessen.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(compress)
    app.command()(profile)
    app.command()(verify)


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder, a GGUF file, an artifact, FILE.py:NAME, a reference folder of a study, a "
            ".safetensors file, or the word 'reference' to train it."
        ),
    ],
    step: Annotated[
        list[str], typer.Option("--step", "-s", help="METHOD or METHOD:knob=value,...; repeat for more steps.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the artifact.")],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help="Task it is judged on: NAME, NAME:option=value,..., or your own, FILE.py:NAME. Left "
            "out, a language model with its tokenizer is judged on text, another Hugging Face model by how far it "
            "agrees with its uncompressed self.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="What a language model is calibrated and judged on without --task: a UTF-8 file, a folder of .txt "
            "files, or news (built in, the default).",
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="Largest loss of the first metric that you accept.")
    ] = 0.002,
    delta: Annotated[
        bool, typer.Option("--delta", help="Store only what differs from the uncompressed model, which loading needs.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Compress one model, measure it beside the original, and keep the result as an artifact.

    Example: lessen compress FOLDER --step gptq:bits=4,group=64 --out small

    Example: lessen compress reference --task ctr-movielens100k --step emb-rowwise-quant:bits=4 --out out/int4
    """
    from lessen.cli.loading import open_model
    from lessen.cli.progress import Reporting
    from lessen.frontier.margin import check_margin
    from lessen.measure.latency import pinned_threads
    from lessen.recipe import Recipe
    from lessen.trade import compress as compress_model
    from lessen.train.device import find_device

    check_margin(margin, "--margin")
    place = find_device(device)
    recipe = Recipe.parse({"steps": [parse_step(text) for text in step]}, "--step", own=True)
    new_folder(out)
    with interruptible(), Reporting() as log, pinned_threads(threads):
        original, judge = open_model(model, task, seed=seed, log=log, recipe=recipe, text=text)
        trade = compress_model(original.to(place), judge, recipe, margin=margin, seed=seed, threads=threads, log=log)
        stored = trade.save(out, delta=delta)
    if as_json:
        record = trade.measurement.record()
        emit(
            {
                "artifact": str(out),
                "stored_bytes": stored,
                "verdict": trade.verdict,
                "reason": trade.judgement.reason,
                "differences": {name: asdict(found) for name, found in trade.differences.items()},
                **record,
            }
        )
    else:
        line(str(trade))
        architecture = f" --task {shlex.quote(task)}" if task is not None and judge.Options is None else ""
        line(f"\nartifact: {out} (check it with: lessen verify {shlex.quote(str(out))}{architecture})")


def profile(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face folder, a GGUF file, an artifact, a reference folder, a .safetensors file, or any "
            "torch module as FILE.py:NAME; left out: the task's untrained model."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Task that builds the model: NAME, NAME:option=value,..., or FILE.py:NAME."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where the bytes of a model are, how often its table rows are read, and what each method would leave.

    Rows are counted over the task's train split; without a task they count as read evenly. Nothing is trained: of a
    table method that trains, the compact tables are built and weighed, at their default knobs and as small as they get.

    Example: lessen profile --task ctr-movielens100k
    """
    from lessen.cli.loading import open_model
    from lessen.cli.user_code import is_own, own_model
    from lessen.measure.profile import profile as profile_model

    with interruptible():
        if model is not None and task is None and is_own(model):
            found = profile_model(own_model(model))
        else:
            found = profile_model(*open_model(model, task))
    if as_json:
        emit(asdict(found))
        return
    line(str(found))


def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.", metavar="ARTIFACT")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Architecture of an artifact of your own model, or the base of a delta: FILE.py:NAME, or an artifact.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Task whose `build` makes the architecture, in place of --model."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an artifact: digests, structure, tensors, and that it still gives the outputs that it recorded.

    Nothing is downloaded and no data are read where the artifact's task can be told from its options.

    Example: lessen verify out/demo/artifacts/int8-0
    """
    from lessen.artifact.folder import load
    from lessen.artifact.folder import verify as verify_artifact
    from lessen.cli.user_code import is_own, own_model

    if model is not None and task is not None:
        raise ConfigError("give --model or --task, not both: each says which architecture the artifact has")
    base = None if task is None else task_of(task).build()
    if model is not None:
        base = own_model(model) if is_own(model) else load(Path(model))
    found = verify_artifact(artifact) if base is None else verify_artifact(artifact, base)
    if as_json:
        emit({**asdict(found), "path": str(found.path)})
        return
    outputs = {
        "equal": "outputs equal bit for bit",
        "close": f"outputs differ by at most {found.largest_difference:.2g}",
        "none": "no recorded outputs to compare",
    }[found.probe]
    stored = f"{size(found.stored_bytes)} stored"
    if found.serving_bytes != found.stored_bytes:
        stored += f", {size(found.serving_bytes)} with its base"
    line(f"{artifact}: {found.files} files unchanged, {stored}, {outputs}")
