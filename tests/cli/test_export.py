"""`lessen export`: a file that gives the same numbers, with its timings, or one line and no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lessen import cli
from lessen.export.onnx import export_onnx, serve
from lessen.tasks.vision.vit import PlainViT, ViTOptions
from lessen.tokens.reducers import Merge
from lessen.tokens.stored import TokenReduction

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

TASK = "ctr-synthetic:rows=600,rows_per_field=40"


def test_an_artifact_becomes_a_small_file_with_its_timings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, file, timings = tmp_path / "small", tmp_path / "small.onnx", tmp_path / "timings.json"
    step = "emb-rowwise-quant:bits=8,min_rows=10"
    assert cli.execute(["compress", "reference", "-t", TASK, "-s", step, "-o", str(small), "--margin", "0.5"]) == 0
    capsys.readouterr()
    assert cli.execute(["export", str(small), "--out", str(file), "--rows", "16", "--timings", str(timings)]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime / torch" in shown
    record = json.loads(timings.read_text())
    assert record["largest_difference"] <= 1e-5
    assert [timing["rows"] for timing in record["timings"]] == [1, 16]
    assert all(timing["torch_ms"] > 0 and timing["onnxruntime_ms"] > 0 for timing in record["timings"])
    assert record["bytes"] == file.stat().st_size < record["state_bytes"] + 25_000


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.tflite"
    assert cli.execute(["export", "reference", "-t", TASK, "--to", "tflite", "--out", str(file)]) == 2
    assert "the formats are onnx" in capsys.readouterr().err
    assert cli.execute(["export", str(tmp_path / "absent"), "-t", TASK, "--out", str(file)]) == 2
    assert "no model at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("to", "suffix"), [("onnx", "onnx"), ("gguf", "gguf"), ("fbgemm", "safetensors")])
def test_a_file_of_another_kind_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, suffix: str
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    assert cli.execute(["export", "reference", "-t", TASK, "--to", to, "--out", str(file)]) == 2
    assert f"{file} exists and is not called *.{suffix}" in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_a_vision_transformer_with_reduced_tokens_goes_the_same_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PlainViT(ViTOptions(width=48, depth=3)).eval()
    TokenReduction(Merge(removed=(8, 8, 8))).attach(model)
    pictures = torch.randn(6, 3, 32, 32)
    assert export_onnx(model, pictures, tmp_path / "vit.onnx") <= 1e-5
    with torch.no_grad():
        more = torch.randn(9, 3, 32, 32)  # another batch than the traced one
        assert np.allclose(serve(tmp_path / "vit.onnx")(more), model(more).numpy(), atol=1e-5)
