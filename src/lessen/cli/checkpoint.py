"""`lessen checkpoint pack|unpack|ls|verify|prune|prove`: archives of training checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size, table

if TYPE_CHECKING:
    from lessen.checkpoints import PackSettings

app = typer.Typer(
    name="checkpoint", help="Make a run's checkpoints small, and prove that it resumes.", no_args_is_help=True
)

ArchivePath = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Folder of a checkpoint archive.")]
Step = Annotated[int | None, typer.Option("--step", help="Step number; default: the last.")]


@app.command()
def pack(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN_DIR|FILES...", help="A run, or its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", help="Archive to create or to append to.")],
    mode: Annotated[str | None, typer.Option("--mode", help="near (default) or exact.")] = None,
    key_every: Annotated[int | None, typer.Option("--key-every", help="Steps between key frames; default 20.")] = None,
    knob: Annotated[list[str] | None, typer.Option("--near", help="KEY=VALUE of mode near; repeatable.")] = None,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Accept checkpoints without moments.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="MODULE.CLASS that files may hold, as data; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pack the checkpoints that ARCHIVE does not hold yet, in order of step.

    Example: lessen checkpoint pack runs/lm --out runs/lm.archive
    """
    from lessen.checkpoints import find_snapshots
    from lessen.checkpoints import pack as pack_all
    from lessen.cli.progress import Reporting

    settings = _settings(mode, key_every, knob or [], weights_only)
    with interruptible(), Reporting() as log:
        snapshots = find_snapshots(paths, log, allow or ())
        done = pack_all(snapshots, out, settings, log, allow or ())
    before, after = sum(item.raw_bytes for item in done), sum(item.bytes for item in done)
    if as_json:
        steps = [
            {"step": item.step, "raw_bytes": item.raw_bytes, "bytes": item.bytes, "key": item.key} for item in done
        ]
        there = len(snapshots) - len(done)
        emit({"archive": str(out), "packed": steps, "there": there, "raw_bytes": before, "bytes": after})
        return
    skipped = f" ({len(snapshots) - len(done)} were there)" if len(done) < len(snapshots) else ""
    ratio = f", {before / after:.1f} times smaller" if after else ""
    line(f"packed {len(done)} checkpoints{skipped}: {size(before)} -> {size(after)}{ratio}")


def _settings(mode: str | None, key_every: int | None, knobs: list[str], weights_only: bool) -> PackSettings | None:
    """Return the settings the options ask for; None when none is given, so that an archive keeps its own."""
    from pydantic import ValidationError

    from lessen.checkpoints import NearSettings, PackSettings
    from lessen.cli.arguments import parse_call
    from lessen.errors import ConfigError, explain

    chosen: dict[str, Any] = {"mode": mode, "key_every": key_every, "weights_only": weights_only or None}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    near: dict[str, Any] = {}
    for knob in knobs:
        near |= parse_call(f"near:{knob}", "--near")[1]
    if not chosen and not near:
        return None
    try:
        return PackSettings(**chosen, near=NearSettings(**near))
    except ValidationError as error:
        raise ConfigError(
            explain(error, "checkpoint pack", [*PackSettings.model_fields, *NearSettings.model_fields])
        ) from error


@app.command()
def unpack(
    archive: ArchivePath,
    out: Annotated[Path, typer.Option("--out", help="Folder to create with the files of the checkpoint.")],
    step: Step = None,
    every: Annotated[bool, typer.Option("--all", help="Unpack every step, each into OUT/step-N.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint back as the files it was packed from; nothing appears if anything is damaged.

    Example: lessen checkpoint unpack runs/lm.archive --step 4000 --out resumed
    """
    from lessen.checkpoints import Archive
    from lessen.cli.progress import Reporting

    opened = Archive(archive)
    with interruptible(), Reporting() as log:
        if every:
            folders = opened.unpack_all(out, log)
        else:
            folders = [opened.unpack(_last(opened.steps, archive) if step is None else step, out, log)]
    files = [str(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    if as_json:
        emit({"files": files})
    else:
        line("\n".join(f"wrote {name}" for name in files))


def _last(steps: list[int], archive: Path) -> int:
    from lessen.errors import ArtifactError

    if not steps:
        raise ArtifactError(f"{archive} is empty: no checkpoint was packed yet")
    return steps[-1]


@app.command("ls")
def list_steps(archive: ArchivePath, as_json: AsJson = False) -> None:
    """List the steps of an archive with their sizes.

    Example: lessen checkpoint ls runs/lm.archive
    """
    from lessen.checkpoints import Archive

    opened = Archive(archive)
    if as_json:
        rows = [{"step": e.step, "raw_bytes": e.raw_bytes, "bytes": e.bytes, "key": e.key} for e in opened.entries]
        emit({"settings": opened.index.settings, "steps": rows, "bytes": sum(e.bytes for e in opened.index.entries)})
        return
    table(
        [">step", ">checkpoint", ">packed", ">times smaller", "key frame"],
        [
            (e.step, size(e.raw_bytes), size(e.bytes), f"{e.raw_bytes / e.bytes:.1f}", "yes" if e.key else "")
            for e in opened.entries
        ],
        title=f"{archive}: mode {opened.mode}, {size(sum(e.bytes for e in opened.index.entries))}",
    )


@app.command()
def verify(archive: ArchivePath, as_json: AsJson = False) -> None:
    """Decode every step and compare all checksums; exit status 2 and the damaged tensors if any differ.

    Example: lessen checkpoint verify runs/lm.archive
    """
    from lessen.checkpoints import Archive
    from lessen.cli.progress import Reporting
    from lessen.errors import ArtifactError

    opened = Archive(archive)
    with interruptible(), Reporting() as log:
        problems = opened.verify(log)
    if as_json:
        emit({"archive": str(archive), "steps": opened.steps, "problems": problems})
    elif not problems:
        line(f"{archive}: all {len(opened.steps)} steps are whole")
    if problems:
        more = f" (and {len(problems) - 1} more; --json lists them)" if len(problems) > 1 else ""
        raise ArtifactError(f"{problems[0]}{more}")


@app.command()
def prune(
    archive: ArchivePath,
    keep_last: Annotated[int, typer.Option("--keep-last", min=0, help="Keep this many of the last steps.")] = 0,
    keep_every: Annotated[int, typer.Option("--keep-every", min=0, help="Keep steps divisible by this.")] = 0,
    keep: Annotated[list[int] | None, typer.Option("--keep", help="Keep this step; repeatable.")] = None,
    keep_before: Annotated[
        int | None, typer.Option("--keep-before", help="Keep the steps below this: to go back and train on from there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove the steps that no option keeps. Frames that kept steps build on stay, unlisted, until they can go.

    What a step builds on goes back to the last key frame: only whole stretches from key frame to key frame are freed.

    Example: lessen checkpoint prune runs/lm.archive --keep-last 5 --keep-every 1000
    """
    from lessen.checkpoints import Archive

    opened = Archive(archive)
    kept = set(keep or [])
    kept |= set(opened.steps[-keep_last:]) if keep_last else set()
    kept |= {step for step in opened.steps if keep_every and step % keep_every == 0}
    kept |= {step for step in opened.steps if keep_before is not None and step < keep_before}
    before = len(opened.steps)
    freed = opened.prune(kept)
    held = {entry.step: entry.bytes for entry in opened.index.entries if not entry.listed}
    if as_json:
        emit({"steps": opened.steps, "freed_bytes": freed, "held_bytes": sum(held.values()), "held": list(held)})
        return
    why = f"; {len(held)} more frames ({size(sum(held.values()))}) stay, as kept steps build on them" if held else ""
    line(f"kept {len(opened.steps)} of {before} steps, freed {size(freed)}{why}")


@app.command()
def prove(
    archive: ArchivePath,
    train: Annotated[str, typer.Option("--train", help="Your function, as FILE.py:NAME or MODULE:NAME.")],
    step: Step = None,
    original: Annotated[Path | None, typer.Option("--original", help="The checkpoint as it was, if it moved.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to train on.")] = 40,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Data orders to try.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Train on from the archive and from the original; report the loss gap beside the noise between two seeds.

    The function is called as NAME(checkpoint, steps, seed) and returns {"losses": [...], "final": validation loss}.
    Exit status 1 if the gap is larger than the noise.

    Example: lessen checkpoint prove runs/lm.archive --step 4000 --train train.py:resume
    """
    from lessen.checkpoints import Archive
    from lessen.checkpoints.resume_gap import prove as prove_resume
    from lessen.cli.progress import Reporting
    from lessen.errors import GateFailed

    opened = Archive(archive)
    wanted = _last(opened.steps, archive) if step is None else step
    function = _function(train)
    with interruptible(), Reporting() as log:
        proof = prove_resume(opened, wanted, function, original=original, steps=steps, seeds=seeds, log=log)
    if as_json:
        emit(proof.as_json())
    else:
        line(str(proof))
    if not proof.inside:
        raise GateFailed(f"the resume from {archive} differs from the original by more than a change of seed does")


def _function(name: str) -> Any:
    """Import the user's own function, named on the command line. Raises ConfigError."""
    import importlib
    import importlib.util

    from lessen.errors import ConfigError

    module_name, _, attribute = name.rpartition(":")
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            if spec is None or spec.loader is None:
                raise ImportError(f"cannot read {module_name}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, attribute)
    except Exception as error:  # importing runs the user's own code
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--train {name!r} does not name a function, as in train.py:resume ({reason})") from error
