"""`lessen fold`: an artifact that answers as before, and what it says of models with nothing to fold."""

from __future__ import annotations

import json

import pytest
import torch

from lessen import cli

transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")


def saved(tmp_path, model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    model.eval().save_pretrained(tmp_path / "host")
    return tmp_path / "host"


def test_a_folder_becomes_an_artifact_that_answers_as_before(tmp_path, capsys):
    config = transformers.ResNetConfig(embedding_size=32, hidden_sizes=[32, 96], depths=[1, 1], num_labels=5)
    folder = saved(tmp_path, transformers.ResNetForImageClassification(config))
    out = tmp_path / "folded"
    assert cli.execute(["fold", str(folder), "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    fold = record["fold"]
    assert {each["kind"] for each in fold["folded"]} == {"batch norm"}
    assert fold["error"] <= fold["bound"] <= 1e-10
    assert record["quality"]["agreement"] == pytest.approx(1.0)
    assert record["stored_bytes"] < record["reference"]["cost"]["stored_bytes"]
    assert cli.execute(["verify", str(out)]) == 0


def test_it_says_what_it_did(tmp_path, capsys):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=5)
    folder = saved(tmp_path, transformers.ResNetForImageClassification(config))
    assert cli.execute(["fold", str(folder), "--out", str(tmp_path / "folded")]) == 0
    told = capsys.readouterr().out
    assert "batch norm" in told
    assert "largest difference of an answer" in told


def test_a_model_with_nothing_to_fold_is_one_line(tmp_path, capsys):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    folder = saved(tmp_path, transformers.ViTForImageClassification(config))
    assert cli.execute(["fold", str(folder), "--out", str(tmp_path / "folded")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "found nothing to act on" in said
    assert not (tmp_path / "folded").exists()
