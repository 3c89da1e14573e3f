"""The two-line story: compress a folder, then generate from the artifact alone."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.cli import execute
from tiny_language import host_folder

TEXT = "\n\n".join(" ".join(["the cat sat", "on a mat", "and the dog ran"] * (4 + number % 3)) for number in range(20))


def run(*arguments, capsys):
    capsys.readouterr()
    status = execute([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path, capsys):
    """A small artifact whose host folder is gone."""
    host, text = host_folder(tmp_path / "host"), tmp_path / "text.txt"
    text.write_text(TEXT)
    status, out, err = run(
        "compress",
        host,
        "--step",
        "gptq:bits=4,group=32",
        "--text",
        text,
        "--out",
        tmp_path / "small",
        "--json",
        capsys=capsys,
    )
    assert status == 0, err
    assert "calibrated and judged on text" in err
    record = json.loads(out)
    assert record["task"]["name"] == "language"
    assert record["stored_bytes"] < record["reference"]["cost"]["stored_bytes"]
    shutil.rmtree(host)
    return tmp_path / "small"


def test_an_artifact_generates_by_itself(made, capsys):
    ask = ("generate", made, "--prompt", "the cat", "--completion", "--max-new-tokens", "6")
    status, out, err = run(*ask, "--json", capsys=capsys)
    assert status == 0, err
    assert json.loads(out)["outputs"][0]["new_tokens"] >= 1
    status, _, err = run(*ask, "--dtype", "bfloat16", capsys=capsys)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "leave --dtype out" in err


def test_text_belongs_to_a_model_without_task(tmp_path, capsys):
    host = host_folder(tmp_path / "host")
    common = ("compress", host, "--step", "rtn", "--out", tmp_path / "small")
    status, _, err = run(*common, "--text", "x.txt", "--task", "language", capsys=capsys)
    assert (status, "--text or --task, not both" in err) == (2, True)
    status, _, err = run(*common, "--text", tmp_path / "none.txt", capsys=capsys)
    assert (status, "no text at" in err) == (2, True)
    assert not (tmp_path / "small").exists()


def test_an_artifact_leaves_for_three_runtimes(tmp_path, capsys):
    host, text = host_folder(tmp_path / "host"), tmp_path / "text.txt"
    text.write_text(TEXT)
    small = tmp_path / "small"
    step = "rtn:bits=4,group=32,zeros=whole"
    status, _, err = run("compress", host, "--step", step, "--text", text, "--out", small, capsys=capsys)
    assert status == 0, err
    shutil.rmtree(host)
    for to, name in (("gguf", "m.gguf"), ("onnx", "m.onnx"), ("hf", "folder")):
        status, out, err = run("export", small, "--to", to, "--out", tmp_path / name, "--json", capsys=capsys)
        assert status == 0, err
        assert json.loads(out)["bytes"] > 0
    status, out, err = run("export", small, "--to", "hf", "--dense", "--out", tmp_path / "dense", capsys=capsys)
    assert (status, "all dense" in out) == (0, True), err
    status, out, err = run("generate", tmp_path / "dense", "-p", "the cat", "--completion", "--json", capsys=capsys)
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "gguf", "--out", "host/config.json/m.gguf"), "host/config.json"),
        (("--to", "gguf", "--dense", "--out", "m.gguf"), "--dense and --dtype belong to --to hf"),
        (("--to", "hf", "--accuracy-level", "4", "--out", "m"), "--accuracy-level belongs to"),
        (("--to", "hf", "--dense", "--dtype", "int8", "--out", "m"), "dtype 'int8' is not known"),
        (("--to", "pt", "--out", "m"), "the formats are onnx, gguf, hf, fbgemm"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host_folder(tmp_path / "host")
    status, _, err = run("export", "host", *arguments, capsys=capsys)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert said in err
    assert [one.name for one in tmp_path.iterdir()] == ["host"]
