"""Models people bring: Hugging Face folders of every kind and plain torch, through `profile` and `compress`."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

import lessen
from host_models import host
from lessen.cli import execute

KINDS = {
    "decoder": "llama",
    "encoder": "bert",
    "vit": "vit",
    "clip": "clip",
    "siglip": "siglip",
    "dinov2": "dinov2",
    "t5": "t5",
    "whisper": "whisper",
}
STEP = "linear-int8:min_weights=64"


def run(*arguments, capsys):
    capsys.readouterr()
    status = execute([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(params=[*KINDS, "whisper encoder"])
def folder(request, tmp_path):
    if request.param == "whisper encoder":
        host("whisper").model.encoder.save_pretrained(tmp_path / "host")
    else:
        host(KINDS[request.param]).save_pretrained(tmp_path / "host")
    return tmp_path / "host"


def test_a_host_goes_through_profile_compress_and_verify(folder, tmp_path, capsys):
    status, out, err = run("profile", str(folder), capsys=capsys)
    assert status == 0, err
    assert "forecast at default knobs" in out
    assert "Linear" in out
    small = tmp_path / "small"
    status, out, err = run("compress", str(folder), "--step", STEP, "--out", str(small), "--json", capsys=capsys)
    assert status == 0, err
    record = json.loads(out)
    assert 0.9 < record["quality"]["agreement"] <= 1.0
    assert record["reference"]["quality"]["agreement"] == pytest.approx(1.0)
    assert record["stored_bytes"] < record["reference"]["cost"]["stored_bytes"]
    assert "made-up inputs" in err
    status, out, err = run("verify", str(small), capsys=capsys)
    assert (status, "outputs equal bit for bit" in out) == (0, True), err


CNN = """
import torch
from torch import nn
import lessen

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 32))
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))

x = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
y = (x.mean((1, 2, 3)) > 0).long()
PARTS = {"train": slice(0, 200), "validation": slice(200, 300), "test": slice(300, 400)}

class Bright(lessen.Task):
    name = "bright"
    metrics = {"accuracy": lessen.ACCURACY}
    settings = lessen.FitSettings(epochs=3)

    def build(self):
        return Net()

    def batches(self, split, seed=0):
        return [(x[PARTS[split]], y[PARTS[split]])]

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

def trained():
    torch.manual_seed(0)
    return Bright().reference()
"""


def test_a_plain_torch_cnn_goes_through_too(tmp_path, capsys):
    (tmp_path / "cnn.py").write_text(CNN)
    place = tmp_path / "cnn.py"
    status, out, err = run("profile", f"{place}:Net", capsys=capsys)
    assert (status, "Conv2d" in out) == (0, True), err
    status, out, err = run(
        "compress",
        f"{place}:trained",
        "--task",
        f"{place}:Bright",
        "--step",
        "linear-int8:min_weights=1",
        "--out",
        str(tmp_path / "small"),
        "--json",
        capsys=capsys,
    )
    assert status == 0, err
    record = json.loads(out)
    assert record["quality"]["accuracy"] == pytest.approx(record["reference"]["quality"]["accuracy"], abs=0.05)
    assert record["stored_bytes"] < record["reference"]["cost"]["stored_bytes"]


def test_a_host_is_judged_by_a_task_for_hosts(tmp_path, capsys):
    host("bert").save_pretrained(tmp_path / "host")
    arguments = ["compress", str(tmp_path / "host"), "--step", STEP, "--out", str(tmp_path / "small")]
    status, out, err = run(
        *arguments, "--task", "agreement:model=elsewhere,examples=40,length=6", "--json", capsys=capsys
    )
    assert status == 0, err
    described = json.loads(out)["task"]
    assert (described["model"], described["length"]) == (str(tmp_path / "host"), 6)
    status, _, err = run(*arguments[:-1], str(tmp_path / "b"), "--task", "image-cifar10", capsys=capsys)
    assert status == 2
    assert "judges a model of its own" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "no model at"),
        ("hots", r"did you mean"),
        ("cut", "cut short or no safetensors file"),
        ("empty", "does not say which task builds it"),
    ],
)
@pytest.mark.parametrize("command", ["profile", "compress", "export"])
def test_mistakes_are_one_line_with_status_two(tmp_path, capsys, name, said, command):
    host("gpt2").save_pretrained(tmp_path / "host")
    host("gpt2").save_pretrained(tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    more = {
        "profile": [],
        "compress": ["--step", "linear-int8", "--out", str(tmp_path / "out")],
        "export": ["--out", str(tmp_path / "out.onnx")],
    }[command]
    status, _, err = run(command, str(tmp_path / name), *more, capsys=capsys)
    assert status == 2, err
    assert said in err
    assert "fault" not in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "no model at"),
        ("hots", r"did you mean"),
        ("empty", "holds no config.json"),
        ("small", "is an artifact"),
    ],
)
def test_a_text_for_what_is_no_host_says_what_is_there(tmp_path, capsys, name, said):
    host("gpt2").save_pretrained(tmp_path / "host")
    (tmp_path / "empty").mkdir()
    text = tmp_path / "text.txt"
    text.write_text("the cat sat")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "manifest.json").write_text("{}")
    (tmp_path / "small" / "structure.json").write_text("{}")
    arguments = ["--step", "rtn", "--text", str(text), "--out", str(tmp_path / "out")]
    status, _, err = run("compress", str(tmp_path / name), *arguments, capsys=capsys)
    assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert said in err


def test_layers_that_hugging_face_wrote_itself_go_through_too(tmp_path, capsys):
    """GPT-2's Conv1D is no layer of torch."""
    host("gpt2").save_pretrained(tmp_path / "host")
    status, out, err = run(
        "compress", str(tmp_path / "host"), "--step", STEP, "--out", str(tmp_path / "o"), "--json", capsys=capsys
    )
    assert status == 0, err
    assert json.loads(out)["quality"]["agreement"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_host_that_keeps_a_cache_is_exported_without_one(tmp_path, capsys, name):
    pytest.importorskip("onnxruntime", reason="the [onnx] extra is not installed")
    host(name).save_pretrained(tmp_path / "host")
    status, out, err = run("export", str(tmp_path / "host"), "--out", str(tmp_path / "host.onnx"), capsys=capsys)
    assert status == 0, err
    assert "differ from torch's by at most" in out


def test_an_artifact_of_a_host_is_loaded_and_compressed_again(tmp_path, capsys):
    host("llama").save_pretrained(tmp_path / "host")
    first = [
        "compress",
        str(tmp_path / "host"),
        "--step",
        f"{STEP},only=model.layers.0.*",
        "--out",
        str(tmp_path / "one"),
    ]
    assert run(*first, capsys=capsys)[0] == 0
    again = ["compress", str(tmp_path / "one"), "--step", STEP, "--out", str(tmp_path / "two")]
    status, _, err = run(*again, capsys=capsys)
    assert status == 0, err
    assert type(lessen.load(tmp_path / "two").model.layers[1].mlp.up_proj).__name__ == "Int8Linear"
