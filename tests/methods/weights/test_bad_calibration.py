"""What users bring to calibrated methods that cannot work, or teaches nothing: one line each, from the command line too."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from host_models import host
from host_words import Words
from lessen.cli import execute
from lessen.errors import NonFiniteError, TaskError
from lessen.method import Context
from lessen.methods.weights.billm import BiLLM
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.spqr import SpQR
from lessen.stored.linears.group_grid import GroupGrid
from tiny_models import llama

METHODS = {
    "gptq": GPTQ(bits=3, group=32, min_weights=1),
    "spqr": SpQR(min_weights=1, group=8),
    "billm": BiLLM(min_weights=1, block=16),
}


@pytest.fixture
def folder(tmp_path, tokenizer):
    llama().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "words.txt").write_text("\n".join(f"the words of line {number} are these" for number in range(40)))
    return tmp_path


def compress(folder, step, capsys, **options):
    """Status and last line of `lessen compress` on the tiny model."""
    given = {"text": folder / "words.txt", "unit": "line", "window": 16, "stride": 8, "prefill": 8} | options
    task = ",".join(["language", f"model={folder / 'tiny'}", *(f"{name}={value}" for name, value in given.items())])
    capsys.readouterr()
    arguments = ["compress", "reference", "--task", task.replace("language,", "language:"), "--step", step]
    status = execute([*arguments, "--out", str(folder / "small")])
    assert not (folder / "small").exists()
    return status, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("gptq:bits=7", "bits"),
        ("gptq:group=48,hessian=both", "hessian"),
        ("gptq:hessian=output,true_sequential=true", "true_sequential needs hessian=input"),
        ("gptq:blocks_a_pass=2", "blocks_a_pass needs hessian=output"),
        ("spqr:group=2", "group"),
        ("spqr:threshold=0", "threshold"),
        ("billm:block=8", "block"),
        ("billm:bits=1", "bits"),
    ],
)
def test_knobs_that_make_no_sense_are_one_line(folder, capsys, step, said):
    status, line = compress(folder, step, capsys)
    assert status == 2
    assert said in line


def test_text_shorter_than_a_window_is_one_line(folder, capsys):
    status, line = compress(
        folder, "gptq:min_weights=1,group=32,bits=3", capsys, window=128, stride=64, train_documents=2
    )
    assert status == 2
    assert "do not fill a window of 128 tokens" in line


def test_a_weight_that_is_no_number_is_named(folder, capsys):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save_pretrained(folder / "tiny")
    status, line = compress(folder, "gptq:min_weights=1,group=32,bits=3", capsys)
    assert status == 2
    assert "'model.layers.1.mlp.up_proj.weight' in model.safetensors holds NaN" in line


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_inputs_that_are_no_numbers_name_the_layer(method):
    model = host("llama")
    model.model.layers[1].input_layernorm.register_forward_hook(lambda _m, _a, output: output * torch.nan)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity to model\.layers\.1\.self_attn\.[qkv]_proj"):
        method.apply(model, Words("llama"), Context())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_calibration_data_is_one_line(method):
    class Empty(Words):
        def batches(self, split, seed=0):
            return []

    for hessian in ("input", "output"):
        with pytest.raises(TaskError, match="no calibration batches"):
            method.model_copy(update={"hessian": hessian}).apply(host("llama"), Empty(), Context())


@pytest.mark.parametrize("hessian", ["input", "output"])
def test_a_layer_without_any_signal_is_rounded_to_nearest_and_named(hessian):
    """Inputs that are all zero, as behind a dead layer: there is nothing to learn, and nothing fails."""
    for name, method in METHODS.items():
        model, context = host("llama"), Context()
        with torch.no_grad():
            for part in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
                part.weight.zero_()
        made = method.model_copy(update={"hessian": hessian}).apply(model, Words("llama"), context)
        assert "model.layers.0.mlp.down_proj" in context.findings["not_calibrated"], name
        assert set(context.findings["dead"]) == {"model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"}
        assert all(
            bool(torch.isfinite(tensor).all()) for tensor in made.state_dict().values() if tensor.is_floating_point()
        )


def test_weights_on_the_grid_already_are_told_by_gptq_too():
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    codes = torch.randint(0, 16, (32, 64), dtype=torch.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    with torch.no_grad():
        model[0].weight.copy_(
            GroupGrid(4, 32, (torch.rand(32, 2) + 0.1).half(), torch.randn(32, 2).half()).values(codes)
        )

    class Rows(Words):
        def batches(self, split, seed=0):
            yield torch.randn(20, 64), torch.zeros(20)

        def loss(self, model, batch):
            return self.forward(model, batch).square().sum()

    for hessian in ("input", "output"):
        context = Context()
        weight = model[0].weight.detach().clone()
        fresh = nn.Sequential(nn.Linear(64, 32, bias=False))
        fresh.load_state_dict(model.state_dict())
        made = GPTQ(bits=4, group=32, hessian=hessian).apply(fresh, Rows(), context)
        assert context.findings["warning"].startswith("lossless, nothing to learn: 1 of 1 layers")
        assert torch.equal(made[0].dequantise(), weight)


def test_knobs_are_refused_in_python_as_well():
    for cls, knobs in ((SpQR, {"stats_bits": 1}), (BiLLM, {"damping": 0.0}), (GPTQ, {"calibration_batches": 0})):
        with pytest.raises(ValidationError, match=next(iter(knobs))):
            cls(**knobs)
