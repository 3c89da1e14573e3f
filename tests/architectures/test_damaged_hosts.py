"""Folders that load and would write nonsense: damaged tensors, foreign tokenizers, a head that is nowhere."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.cli import execute
from tiny_language import byte_level, host_folder, language_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert execute([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    return said


def test_nan_in_one_shard_is_named_with_its_file(tmp_path, capsys):
    folder = tmp_path / "host"
    language_model().save_pretrained(folder, max_shard_size="60KB")
    byte_level().save_pretrained(folder)
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.down_proj.weight"
    state = load_file(folder / where[name])
    state[name][2, 3] = float("nan")
    save_file(state, folder / where[name], metadata={"format": "pt"})
    for command in (
        ("generate", folder, "-p", "x"), ("compress", folder, "-s", "rtn", "-o", tmp_path / "out"),
        ("export", folder, "--to", "gguf", "--out", tmp_path / "m.gguf"),
    ):  # fmt: skip
        assert f"tensor '{name}' in {where[name]} holds NaN" in refused(capsys, *command)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path, capsys):
    folder = host_folder(tmp_path / "host", vocab=270)
    said = refused(capsys, "generate", folder, "-p", "the cat")
    assert "ids up to 279, and the model has 270 rows" in said


def test_a_head_that_is_tied_in_the_file_only_is_explained(tmp_path, capsys):
    folder = host_folder(tmp_path / "host", tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    said = refused(capsys, "generate", folder, "-p", "the cat")
    assert "no tensor 'lm_head.weight'" in said
    assert '"tie_word_embeddings": true' in said


@pytest.mark.parametrize(("changed", "said"), [({"num_attention_heads": 5}, "5"), ({"hidden_size": "64"}, "64")])
def test_a_configuration_that_cannot_be_says_what_is_wrong_with_it(tmp_path, capsys, changed, said):
    """transformers writes the reason in the lines below its first, which ends in a colon."""
    folder = host_folder(tmp_path / "host")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    found = refused(capsys, "generate", folder, "-p", "the cat").strip()
    assert "config.json cannot be used" in found
    assert said in found.partition("cannot be used")[2]
    assert not found.endswith(":")


def test_more_context_than_the_model_has_is_refused(tmp_path, capsys):
    folder = host_folder(tmp_path / "host")
    text = tmp_path / "t.txt"
    text.write_text("\n\n".join(["the cat sat on a mat"] * 20))
    task = f"language:model={folder},text={text},window=4096"
    assert "longer than the 128 positions" in refused(
        capsys, "compress", folder, "-t", task, "-s", "rtn", "-o", tmp_path / "out"
    )
    assert "context" in refused(capsys, "generate", folder, "-p", "the cat " * 200, "--completion")
