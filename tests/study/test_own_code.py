"""A study of the user's own task and methods, named in its YAML; and a study that is run in pieces."""

from __future__ import annotations

import json

import pytest

from lessen import cli, files
from lessen.errors import ConfigError
from lessen.frontier import Frontier
from lessen.methods import get_method
from lessen.study import Study, run
from lessen.study.engine import ProcessEngine
from lessen.tasks import get_task
from study_tools import TEXT, settled, write

CODE = '''
import torch
from torch import nn
import lessen
from lessen.metrics import AUC, MeanMetric, Outcomes
from lessen.train.settings import FitSettings


class Mine(lessen.Task):
    name = "mine"
    metrics = {"auc": AUC}
    settings = FitSettings(epochs=2, learning_rate=0.05)

    def __init__(self, rows=400):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(rows, 8, generator=generator)
        self.y = (self.x[:, 0] + 0.5 * torch.randn(rows, generator=generator) > 0).float()

    def build(self):
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))

    def batches(self, split, seed=0):
        half = len(self.x) // 2
        part = slice(0, half) if split == "train" else slice(half, None)
        yield self.x[part], self.y[part]

    def loss(self, model, batch):
        return nn.functional.binary_cross_entropy_with_logits(self.forward(model, batch), batch[1])


class Share(MeanMetric):
    name, reads = "share-turned", ("turned",)

    def each(self, outcomes):
        return outcomes["turned"].astype(float)


class Sides(lessen.Judge):
    """Asks the same rows from the other side: does the answer turn when the first column is turned?"""

    name = "sides"
    metrics = {"turned": Share()}
    columns = ("turned",)

    def __init__(self, rows=50):
        self.x = Mine(rows).x

    def outcomes(self, model, split="test"):
        with torch.no_grad():
            before, after = model(self.x) > 0, model(self.x * torch.tensor([-1.0] + [1.0] * 7)) > 0
        return Outcomes({"turned": (before != after).numpy()})

    def fingerprint(self):
        return f"sides-{len(self.x)}"


class Blind(Sides):
    """Its metric reads what it does not give."""

    columns = ("right",)


class Rounded(lessen.Method):
    """Round weights to a grid of steps."""

    card = lessen.Card("my-rounding", "weights", "Round weights.", (nn.Linear,), "nobody", claims=frozenset())
    step: float = 0.25

    def apply(self, model, task, context):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter / self.step).round() * self.step)
        return model
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_study_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return write(
        tmp_path / "study.yaml",
        """
study: own
task: {name: "my_study_code.py:Mine", rows: 300}
seeds: [0]
measure: {rounds: 8, baselines: false}
recipes:
  - name: rounded
    steps: [{"my_study_code.py:Rounded": {step: 0.5}}]
""",
    )


def test_own_task_and_method_run_in_other_processes_too(own, tmp_path):
    study = Study.load(own)
    engine = ProcessEngine(2)
    result = run(study, tmp_path / "two", engine=engine)
    assert [record["status"] for record in result.records] == ["ok"], result.records
    assert result.records[0]["steps"][0]["method"] == "my-rounding"
    resolved = files.parse_yaml((tmp_path / "two" / "study.yaml").read_text(), "study")
    assert resolved["task"] == {"name": "my_study_code.py:Mine", "rows": 300}
    assert resolved["recipes"][0]["steps"] == [{"my_study_code.py:Rounded": {"step": 0.5, "version": 1}}]
    assert cli.execute(["run", str(own), "--out", str(tmp_path / "two"), "--resume"]) == 0


def test_judges_look_at_the_same_models_beside_the_task(own, tmp_path, capsys):
    text = own.read_text().replace("seeds: [0]", 'judges: [{name: "my_study_code.py:Sides", rows: 80}]\nseeds: [0, 1]')
    own.write_text(text)
    out = tmp_path / "judged"
    assert cli.execute(["run", str(own), "--out", str(out), "--jobs", "1"]) == 0, capsys.readouterr()
    record = json.loads((out / "measurements.jsonl").read_text().splitlines()[0])
    assert list(record["quality"]) == ["auc", "sides.turned"]
    assert record["metrics"]["sides.turned"]["judge"] == "sides"
    assert {"outcomes/sides/rounded-0.safetensors", "outcomes/sides/units.safetensors"} <= set(record["evidence"])
    (point,) = Frontier.load(out).points
    assert point.difference["sides.turned"].examples == 80
    assert point.difference["sides.turned"].source == point.difference["auc"].source
    own.write_text(text.replace("rows: 80", "rows: 90"))
    assert cli.execute(["run", str(own), "--out", str(out), "--resume"]) == 2
    assert "judges was" in capsys.readouterr().err


def test_a_metric_that_reads_what_its_judge_does_not_give_is_refused_before_any_work(own, tmp_path, capsys):
    own.write_text(own.read_text().replace("seeds: [0]", 'judges: ["my_study_code.py:Blind"]\nseeds: [0]'))
    assert cli.execute(["run", str(own), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "the metric 'turned' reads 'turned', which" in error
    assert not (tmp_path / "o").exists()


def test_results_never_import_code(own):
    """Only what the user wrote may name code: descriptions inside artifacts and folders may not."""
    with pytest.raises(ConfigError, match="no task is called"):
        get_task({"name": "my_study_code.py:Mine"})
    with pytest.raises(ConfigError, match="no method is called"):
        get_method("my_study_code.py:Rounded")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Mine", "Minne", "did you mean 'Mine'"),
        ("rows: 300", "rws: 300", "unexpected keyword"),
        ("Rounded", "Mine", "is not a lessen Method"),
        ("my_study_code.py:Mine", "gone.py:Mine", "no file gone.py"),
    ],
)
def test_mistakes_in_own_code_are_one_line(own, capsys, tmp_path, old, new, expected):
    own.write_text(own.read_text().replace(old, new))
    assert cli.execute(["run", str(own), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_study_runs_in_pieces(tmp_path, capsys):
    study, out = write(tmp_path / "study.yaml", TEXT), tmp_path / "out"
    assert cli.execute(["run", str(study), "--out", str(out), "--only", "int*", "--jobs", "1"]) == 0
    assert "2 of 4 runs are left; go on with: lessen run" in capsys.readouterr().out
    assert {json.loads(line)["recipe"] for line in (out / "measurements.jsonl").read_text().splitlines()} == {"int8"}
    result = run(Study.load(study), out, resume=True, seconds=0.0)
    assert result.left == 2
    result = run(Study.load(study), out, resume=True)
    assert (result.left, len(settled(out))) == (0, 4)
    assert cli.execute(["run", str(study), "--out", str(out), "--only", "it*"]) == 2
    assert "matches no recipe" in capsys.readouterr().err
