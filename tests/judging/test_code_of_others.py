"""Suites, metrics and tasks that are not ours raise or return nonsense: one line that names whose code it is."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from lessen import registry
from lessen.errors import InputError
from lessen.judging import judge_models
from lessen.judging.card import read_card, write_card
from lessen.metrics import ACCURACY, AUC, MeanMetric
from lessen.task import Task
from lessen.tasks import get_task

THEIRS = """
import numpy as np
from lessen.judges.suite import Section, Suite, SuiteOptions, Table


class Base(Suite):
    name, question, metrics, Options = "theirs", "Is it theirs?", {}, SuiteOptions


class Raises(Base):
    def outcomes(self, model, split="test"):
        raise RuntimeError("their code\\nbroke")


class Nothing(Base):
    def outcomes(self, model, split="test"):
        return None


class Unable(Base):
    def unable(self, model):
        return model.nowhere


class Compares(Base):
    def compare(self, before, after):
        return 1 / 0


class NoSection(Base):
    def compare(self, before, after):
        return {"caught": []}


class OneText(Base):
    def compare(self, before, after):
        return Section(self.name, self.question, caught="it stopped")


class NoTable(Base):
    def compare(self, before, after):
        return Section(self.name, self.question, tables=(("a", "b"),))


class Ragged(Base):
    def compare(self, before, after):
        return Section(self.name, self.question, tables=(Table("", ("a", "b"), (("1",),)),))


class Figures(Base):
    def compare(self, before, after):
        return Section(self.name, self.question, figures={"a": np.arange(2)})


class Nameless(Suite):
    question, metrics = "Who?", {}


class NoMetric(Base):
    metrics = {"m": 5}


class Makes(Base):
    def __init__(self, options=None):
        raise OSError("no such disk")


nothing = 5
"""


class Rows(Task):
    """Three classes of 200 rows, cut and grouped as a test says."""

    name = "rows-of-others"
    metrics = {"accuracy": ACCURACY}
    cuts: object = None

    def build(self):
        return torch.nn.Linear(4, 3)

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed(0)
        yield torch.randn(200, 4, generator=generator), torch.arange(200) % 3

    def slices(self, split):
        if isinstance(self.cuts, Exception):
            raise self.cuts
        return self.cuts


@pytest.fixture
def models():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "code_of_theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return "code_of_theirs.py"


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        ("Raises", "suite 'theirs' failed; its code raised: RuntimeError: their code broke"),
        ("Nothing", "outcomes must return lessen.metrics.Outcomes, not NoneType"),
        ("Unable", "its code raised: AttributeError"),
        ("Compares", "its code raised: ZeroDivisionError"),
        ("NoSection", "compare must return a lessen.judges.suite.Section, not dict"),
        ("OneText", "`caught` of its Section must be a tuple of texts"),
        ("NoTable", "`tables` of its Section must be a tuple"),
        ("Ragged", "one for each of its columns"),
        ("Figures", "`figures` of its Section must be JSON values"),
        ("Nameless", "has no `name`"),
        ("NoMetric", "not an instance of lessen.metrics.Metric"),
        ("Makes", "no such disk"),
        ("nothing", "is a int, not a lessen.Judge"),
    ],
)
def test_a_suite_by_file_or_entry_point_that_fails_is_one_line(suite, words, theirs, models, monkeypatch):
    task = Rows()
    with pytest.raises(InputError) as caught:
        judge_models(*models, task, [f"{theirs}:{suite}"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    point = EntryPoint("theirs", f"code_of_theirs:{suite}", "lessen.judges")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "lessen.judges" else [])
    with pytest.raises(InputError) as again:
        judge_models(*models, task, ["theirs"])
    assert "\n" not in str(again.value)


@pytest.mark.parametrize("target", ["code_of_theirs:Nowhere", "module_of_nobody:Suite", "code_of_theirs:nothing"])
def test_an_entry_point_that_leads_nowhere_is_named(target, theirs, models, monkeypatch):
    point = EntryPoint("theirs", target, "lessen.judges")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "lessen.judges" else [])
    with pytest.raises(InputError, match=target):
        judge_models(*models, Rows(), ["theirs"])


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (RuntimeError("boom"), "its slices('test') raised: RuntimeError: boom"),
        (None, "slices(split) must return labels by name, not NoneType"),
        ({"a": [[1, 2]] * 200}, "slices by 'a' hold (200, 2) labels for 200 examples"),
        ({"a": [[1], [1, 2]] * 100}, "slices by 'a' are no labels"),
        ({"a": np.arange(3)}, "slices by 'a' hold 3 labels for 200 examples"),
    ],
)
def test_slices_that_are_none_are_one_line(cuts, words, models):
    task = Rows()
    task.cuts = cuts
    with pytest.raises(InputError) as caught:
        judge_models(*models, task, ["slices"])
    assert words in str(caught.value)


def test_labels_of_mixed_kinds_are_cut_by_their_texts(models):
    task = Rows()
    task.cuts = {"city": [None] * 100 + ["x"] * 50 + [3] * 50, 5: torch.arange(200) % 2}
    card = judge_models(*models, task, [{"name": "slices", "by": ["city", "5"], "worst": 20}])
    assert {each["slice"] for each in card.sections[0].figures["worst"]} == {
        "city=None",
        "city=x",
        "city=3",
        "5=0",
        "5=1",
    }


class Breaks(MeanMetric):
    name, title, reads = "breaks-on-a-card", "breaks", ("score", "target")

    def each(self, outcomes):
        raise KeyError("row")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"groups": lambda split: 1 / 0},
            "task 'rows-of-others' cannot judge the model; its code raised: ZeroDivision",
        ),
        ({"metrics": {"breaks": Breaks()}}, "KeyError: 'row'"),
    ],
)
def test_a_task_that_breaks_is_one_line(change, words, models):
    with pytest.raises(InputError) as caught:
        judge_models(*models, Rows().view(**change), ["metrics"])
    assert words in str(caught.value)


@pytest.mark.parametrize("suite", ["ctr-synthetic", {"name": "flips", "task": "ctr-synthetic"}])
def test_a_suite_on_data_that_the_model_does_not_take_is_one_line(suite, models):
    with pytest.raises(InputError, match="task 'ctr-synthetic' cannot call Linear on its first test batch"):
        judge_models(*models, Rows(), [suite])


def test_noise_is_put_on_a_task_of_ones_own(tmp_path, monkeypatch, models):
    (tmp_path / "noisy_task.py").write_text(
        "import torch\nfrom lessen.metrics import ACCURACY\nfrom lessen.task import Task\n\n\n"
        "class Noisy(Task):\n    name, metrics = 'noisy', {'accuracy': ACCURACY}\n"
        "    def build(self):\n        return torch.nn.Linear(4, 3)\n"
        "    def batches(self, split, seed=0):\n        yield torch.ones(60, 4), torch.arange(60) % 3\n"
    )
    monkeypatch.chdir(tmp_path)
    card = judge_models(*models, get_task("noisy_task.py:Noisy", own=True), ["corrupted"])
    assert [section.name for section in card.sections] == ["corrupted"]


class Clicks(Task):
    """Clicks of which the test split holds one class only."""

    name = "clicks-of-one-class"
    metrics = {"auc": AUC}

    def build(self):
        return torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Flatten(0))

    def batches(self, split, seed=0):
        yield torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.ones(50)


def test_a_suite_that_was_not_named_and_fails_leaves_the_others_their_sections(tmp_path):
    task = Clicks()
    torch.manual_seed(0)
    card = judge_models(task.build(), task.build(), task)
    assert "flips" in {section.name for section in card.sections}
    assert any("suite 'metrics': AUC needs both classes" in why for why in card.unanswered)
    assert read_card(write_card(card, tmp_path)).unanswered == card.unanswered
    with pytest.raises(InputError, match="both classes"):
        judge_models(task.build(), task.build(), task, ["metrics"])
