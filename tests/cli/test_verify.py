"""`lessen verify` of artifacts of one's own models and of deltas; `lessen compress` of state files as people have them."""

import pytest
import torch
from safetensors.torch import save_file

from lessen import cli
from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of
from lessen.tasks import get_task

TASK = "ctr-synthetic:rows=300,rows_per_field=20,fields=2"


def execute(capsys, *arguments):
    capsys.readouterr()
    status = cli.execute([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out.replace("\n", " "), captured.err


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "mynet_for_verify.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def Net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))\n"
    )
    torch.manual_seed(0)
    from torch import nn

    return path, nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


def test_an_artifact_of_ones_own_model_is_verified_with_its_architecture(capsys, network, tmp_path):
    path, model = network
    artifact.save(tmp_path / "a", model, model, probe=torch.ones(2, 4))
    status, _, talk = execute(capsys, "verify", tmp_path / "a")
    assert status == 2
    assert "pass its architecture" in talk
    status, text, _ = execute(capsys, "verify", tmp_path / "a", "--model", f"{path}:Net")
    assert (status, "outputs equal bit for bit" in text, "with its base" in text) == (0, True, False)


def test_a_delta_is_verified_with_its_base_and_says_both_sizes(capsys, network, tmp_path):
    path, model = network
    artifact.save(tmp_path / "a", model, model, probe=torch.ones(2, 4), reference=base_of(model))
    status, _, talk = execute(capsys, "verify", tmp_path / "a")
    assert status == 2
    assert "without its base" in talk
    status, text, _ = execute(capsys, "verify", tmp_path / "a", "--model", f"{path}:Net")
    assert status == 0
    assert "with its base" in text


def test_compress_takes_a_compiled_model_s_state_and_writes_a_delta(capsys, tmp_path):
    torch.manual_seed(0)
    task = get_task({"name": "ctr-synthetic", "rows": 300, "rows_per_field": 20, "fields": 2})
    state = {f"_orig_mod.{name}": tensor.contiguous() for name, tensor in task.build().state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    step = ["--step", "emb-rowwise-quant:bits=8,min_rows=5"]
    for name, more in (("whole", []), ("delta", ["--delta"])):
        status, _, talk = execute(
            capsys, "compress", tmp_path / "m.safetensors", "--task", TASK, *step, "--out", tmp_path / name, *more
        )
        assert status == 0, talk
    assert (tmp_path / "delta" / "model.safetensors").stat().st_size < (
        tmp_path / "whole" / "model.safetensors"
    ).stat().st_size
    assert execute(capsys, "verify", tmp_path / "whole")[0] == 0
    assert execute(capsys, "verify", tmp_path / "delta")[0] == 2
