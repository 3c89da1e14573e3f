"""`lessen export`: a model as a file that other runtimes serve, checked and timed against torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.arguments import Threads, new_file
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size, table

if TYPE_CHECKING:
    from torch import nn

    from lessen.measure.latency import Latency
    from lessen.task import Task

TARGETS = ("onnx", "gguf", "hf", "fbgemm")


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(export)


def export(
    model: Annotated[
        str, typer.Argument(help="An artifact, a reference folder, a .safetensors file, or the word 'reference'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, such as model.onnx or tables.safetensors.")],
    to: Annotated[
        str, typer.Option("--to", help="Format: onnx, gguf, hf (a folder), or fbgemm for row-wise tables.")
    ] = "onnx",
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task that builds the model; an artifact names its own.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=2, help="Examples of the batch that is timed (default: the task's, at most 256)."),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="hf: decode packed layers, so that any reader opens the folder.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="hf with --dense: float32, bfloat16 or float16 (default: as it is).")
    ] = None,
    accuracy_level: Annotated[
        int,
        typer.Option(
            "--accuracy-level",
            min=0,
            max=4,
            help="onnx of a language model: 0 is exact, 4 quicker with 8 bit activations.",
        ),
    ] = 0,
    threads: Threads = 1,
    timings: Annotated[
        Path | None, typer.Option("--timings", help="Write parity, sizes, timings and machine to this JSON file too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for onnxruntime, llama.cpp or transformers, or its row-wise tables for FBGEMM.

    GGUF and hf: packed codes are carried over bit for bit, none is rounded again; what a container cannot hold is
    named. hf is a folder that transformers loads, packed layers as compressed-tensors, or plain ones with --dense.

    ONNX: any batch size, outputs equal to torch's within 1e-5 or no file at all. A language model without --task
    becomes a graph that decodes: keys and values go in and come out, packed layers are MatMulNBits.

    Compact tables stay compact: their bytes are in the graph, which unpacks the rows it reads. One row and a batch are
    then timed under both runtimes in alternation. FBGEMM: the tables of emb-rowwise-quant, fp16 scale and bias first.

    Example: lessen export small --to gguf --out small.gguf

    Example: lessen export small --to onnx --out small.onnx
    """
    from lessen.cli.containers import emit_container, emit_decoder
    from lessen.cli.languages import writes_text
    from lessen.errors import ConfigError

    if to not in TARGETS:
        raise ConfigError(f"--to {to!r} is not a format lessen writes; the formats are {', '.join(TARGETS)}")
    if to != "hf" and (dense or dtype is not None):
        raise ConfigError("--dense and --dtype belong to --to hf")
    decodes = to == "onnx" and task is None and timings is None and rows is None and writes_text(model)
    if accuracy_level != 0 and not decodes:
        raise ConfigError(
            "--accuracy-level belongs to the decoding graph of a language model: --to onnx without --task"
        )
    with interruptible():
        if decodes:
            emit_decoder(model, out, accuracy_level, as_json)
        elif to in ("gguf", "hf"):
            emit_container(model, task, to, out, dense, dtype, as_json)
        elif to == "fbgemm":
            _write_fbgemm(model, task, out, as_json)
        else:
            record = _write_onnx(model, task, out, rows, threads, timings)
            if as_json:
                emit(record)
            else:
                _show_onnx(out, record)


def _write_onnx(
    source: str, task: str | None, out: Path, rows: int | None, threads: int, timings: Path | None
) -> dict[str, Any]:
    """Write the graph and, where asked for, the record of its check and timings; return that record."""
    from lessen.cli.loading import open_model
    from lessen.environment import environment, package_version
    from lessen.export.onnx import export_onnx
    from lessen.files import atomic_write, dump_json
    from lessen.methods.sites import state_bytes

    new_file(out, ".onnx")
    if timings is not None:
        new_file(timings, ".json")
    model, judge = open_model(source, task)
    for config in (getattr(module, "config", None) for module in model.modules()):
        if config is not None and getattr(config, "use_cache", False):
            config.use_cache = False  # of this copy: a graph reads whole texts and gives no key-value cache back
    example = judge.example_batch()
    difference = export_onnx(model, judge.inputs(example), out)
    batch = rows or max(2, min(256, judge.units_in(example)))
    found = {count: time_both(model, judge, out, count, threads) for count in (1, batch)}
    record: dict[str, Any] = {
        "file": out.name,
        "bytes": out.stat().st_size,
        "state_bytes": state_bytes(model),
        "task": judge.describe(),
        "largest_difference": difference,
        "timings": [_timing(count, latency) for count, latency in found.items()],
        "env": {**environment(threads), "onnxruntime": package_version("onnxruntime")},
    }
    if timings is not None:
        atomic_write(timings, dump_json(record))
    return record


def _show_onnx(out: Path, record: dict[str, Any]) -> None:
    line(f"{out}: {size(record['bytes'])}, the model's tensors are {size(record['state_bytes'])}")
    line(f"outputs differ from torch's by at most {record['largest_difference']:.1e}\n")
    table(
        ("rows", ">torch ms", ">onnxruntime ms", ">onnxruntime / torch", "95 % interval"), map(_row, record["timings"])
    )


def _write_fbgemm(source: str, task: str | None, out: Path, as_json: bool) -> None:
    from lessen.cli.loading import open_model
    from lessen.export.fbgemm import export_fbgemm

    new_file(out, ".safetensors")
    difference = export_fbgemm(open_model(source, task)[0], out)
    if as_json:
        emit({"file": out.name, "bytes": out.stat().st_size, "largest_difference": difference})
    else:
        line(f"{out}: {size(out.stat().st_size)}; values differ from the stored rows' by at most {difference:.1e}")


def time_both(model: nn.Module, task: Task, path: Path, rows: int, threads: int) -> Latency:
    """Time batches of `rows` examples under torch and under onnxruntime in alternation; torch is the reference."""
    from lessen.export.onnx import first_rows, named, serve
    from lessen.measure.latency import compare_latency
    from lessen.task import call_model

    work = task.workloads().get("forward")
    batches = work.items if work is not None else [task.example_batch()]
    inputs = [first_rows(named(model, task.inputs(batch)), rows) for batch in batches]
    return compare_latency(
        lambda batch: call_model(model, batch), serve(path, threads), inputs, threads=threads, batch_examples=rows
    )


def _timing(rows: int, latency: Latency) -> dict[str, Any]:
    return {
        "rows": rows,
        "torch_ms": latency.reference_p50_ms,
        "onnxruntime_ms": latency.p50_ms,
        "ratio": latency.ratio,
        "ratio_ci": [latency.ratio_low, latency.ratio_high],
        "rounds": latency.rounds,
        "threads": latency.threads,
    }


def _row(timing: dict[str, Any]) -> tuple[str, ...]:
    low, high = timing["ratio_ci"]
    milliseconds = (f"{timing[key]:.3f}" for key in ("torch_ms", "onnxruntime_ms"))
    return (str(timing["rows"]), *milliseconds, f"{timing['ratio']:.2f}×", f"[{low:.2f}, {high:.2f}]")
