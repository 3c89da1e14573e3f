"""`lessen export --to gguf` and `--to hf`: what other runtimes of Hugging Face models read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lessen.architectures.folder import CONFIG
from lessen.cli.arguments import new_file, new_folder
from lessen.cli.languages import open_any, open_host, open_language
from lessen.cli.output import emit, line, say, size

SHOWN = 3
"""Names of layers that a line lists."""


def emit_decoder(model: str, out: Path, accuracy_level: int, as_json: bool) -> None:
    """Write a decoding graph and say how near it is. Raises what `export_decoder` raises."""
    from lessen.export.onnx_decoder import export_decoder

    new_file(out, ".onnx")
    plain = (Path(model) / CONFIG).is_file()  # a graph needs no tokenizer, so its folder may hold none
    opened = open_host(model, None)[0] if plain else open_language(model)[0]
    written = export_decoder(opened, out, accuracy_level=accuracy_level)
    if as_json:
        emit({"out": out.name, **asdict(written)})
        return
    line(f"{out}: {size(written.bytes)}, {written.packed} packed layers (MatMulNBits), keys and values in and out")
    line(f"logits differ from torch's by at most {written.difference:.1e}, {written.share:.1e} of the largest")


def emit_container(
    model: str, task: str | None, to: str, out: Path, dense: bool, dtype: str | None, as_json: bool
) -> None:
    """Write one container and say what is in it. Raises what `export_gguf` and `export_hf` raise."""
    record, told = _gguf(model, out) if to == "gguf" else _folder(model, task, out, dense, dtype)
    if as_json:
        emit({"out": out.name, **record})
        return
    line(told)
    for name, what in (("rounded", "rounded to 16 bits"), ("decoded", "decoded, for they have no form there")):
        names = record[name]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            say(f"{len(names)} tensors {what}: {', '.join(names[:SHOWN])}{more}")


def _gguf(model: str, out: Path) -> tuple[dict[str, Any], str]:
    from lessen.export.gguf.write import export_gguf

    new_file(out, ".gguf")
    written = export_gguf(*open_any(model), out)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(written.kinds.items()))
    return asdict(written), f"{out}: {size(written.bytes)}, architecture {written.architecture}, tensors: {kinds}"


def _folder(model: str, task: str | None, out: Path, dense: bool, dtype: str | None) -> tuple[dict[str, Any], str]:
    from lessen.export.hf import export_hf

    new_folder(out)
    written = export_hf(*open_host(model, task), out, dense=dense, dtype=dtype)
    what = f"{written.packed} packed layers (compressed-tensors)" if written.packed else "all dense"
    return asdict(written), f"{out}: {size(written.bytes)}, {written.architecture}, {what}"
