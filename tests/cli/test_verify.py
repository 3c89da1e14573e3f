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


OWN = """
import torch
from torch import nn
from lessen.metrics import AUC
from lessen.task import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(1500, 4)
        self.out = nn.Linear(4, 1)
    def forward(self, ids):
        return self.out(self.table(ids)).squeeze(-1)

class Mine(Task):
    name = "mine"
    metrics = {"auc": AUC}
    def build(self):
        return Net()
    def batches(self, split, seed=0):
        ids = torch.arange(64) * 13 % 1500
        yield ids, (ids % 2).float()
    def reference(self, seed=0, log=None):
        open("trained", "w").close()
        torch.manual_seed(seed)
        return Net().eval()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_of_verify.py").write_text(OWN)
    return tmp_path


def test_an_own_model_is_verified_by_its_task_as_compress_advises(capsys, own):
    step = ("--step", "emb-rowwise-quant:bits=4")
    status, text, talk = execute(capsys, "compress", "reference", "-t", "own_of_verify.py:Mine", *step, "--out", "a")
    assert (status, "lessen verify a --task own_of_verify.py:Mine" in text) == (0, True), talk
    status, text, talk = execute(capsys, "verify", "a", "--task", "own_of_verify.py:Mine")
    assert (status, "outputs equal bit for bit" in text) == (0, True), talk
    status, _, talk = execute(capsys, "verify", "a", "-t", "own_of_verify.py:Mine", "-m", "own_of_verify.py:Net")
    assert (status, "not both" in talk) == (2, True)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("emb-rowwise-quant:share=0.001", "the nearest it can reach"),
        ("emb-rowwise-quant:min_rows=2000", "found nothing to act on"),
        ("emb-hash:share=0.0000001", "the nearest it can reach"),
    ],
)
def test_a_budget_out_of_reach_is_refused_before_the_reference_is_trained(capsys, own, step, said):
    status, _, talk = execute(capsys, "compress", "reference", "-t", "own_of_verify.py:Mine", "-s", step, "-o", "a")
    assert (status, said in talk, (own / "trained").exists()) == (2, True, False), talk


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("profile", "own_of_verify.py"), "for a model in it write own_of_verify.py:NAME"),
        (("profile", "--task", "own_of_verify.py"), "for code of your own write own_of_verify.py:NAME"),
        (("compress", "reference", "-t", "own_of_verify.py:Mine", "-s", "own_of_verify.py", "-o", "a"), ".py:NAME"),
    ],
)
def test_a_file_without_a_name_says_how_it_is_written(capsys, own, command, said):
    status, _, talk = execute(capsys, *command)
    assert (status, said in talk) == (2, True), talk


@pytest.mark.parametrize("place", ["/proc/none/x", "folder"])
@pytest.mark.parametrize(
    "command",
    [
        ("export", "reference", "-t", "own_of_verify.py:Mine", "--out"),
        ("export", "reference", "-t", "own_of_verify.py:Mine", "--out", "fine.onnx", "--timings"),
        ("compress", "reference", "-t", "own_of_verify.py:Mine", "-s", "emb-half", "--out"),
        ("data", "infer", "rows.csv", "--out"),
        ("rank", "rows.csv", "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(capsys, own, monkeypatch, command, place):
    (own / "folder").mkdir()
    (own / "folder" / "kept").write_text("kept")
    (own / "rows.csv").write_text("label,a\n1,2\n0,3\n")
    monkeypatch.setattr("lessen.data.infer.infer", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("lessen.selection.ranking.ranking.rank", lambda *_, **__: pytest.fail("worked"))
    status, _, talk = execute(capsys, *command, place)
    assert (status, place.split("/none")[0] in talk, (own / "trained").exists()) == (2, True, False), talk
    assert {path.name for path in own.iterdir()} <= {"folder", "rows.csv", "own_of_verify.py", "__pycache__"}
    assert [path.name for path in (own / "folder").iterdir()] == ["kept"]


def test_a_path_that_no_file_system_takes_is_one_line(capsys, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, told in ((5_000 * "a", "File name too long"), (str(tmp_path / "loop" / "x"), "")):
        assert cli.execute(["verify", path]) == 2
        assert capsys.readouterr().err.startswith("lessen: ")
        assert cli.execute(["report", path]) == 2
        said = capsys.readouterr().err
        assert told in said
        assert len(said.splitlines()) == 1
