"""The card: one pass a model for all suites, kept and read again, shown without markup, refused in one line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.judges.pairs import Given, classes
from lessen.errors import ConfigError, DataError, TaskError
from lessen.judges import get_judge
from lessen.judges.suite import CannotAnswer, SuiteOptions
from lessen.judging import judge_models, read_card
from lessen.metrics import Outcomes
from lessen.report import card as cards
from lessen.study.schema import Study
from lessen.tasks import get_task


class Counting(Given):
    """Counts how often a model is judged."""

    count = 0

    def outcomes(self, model, split="test"):
        Counting.count += 1
        return model.outcomes

    def fingerprint(self):
        return "f" * 64


def models(lost: float):
    return [SimpleNamespace(outcomes=each) for each in classes(0, 1500, lost, 0.0)]


def test_suites_share_one_pass_and_the_card_is_read_again(tmp_path):
    Counting.count = 0
    card = judge_models(*models(0.2), Counting(), title="<b>int4</b>")
    assert Counting.count == 2
    assert {name for name, _ in card.caught} >= {"metrics", "flips"}
    page = cards.write(card, tmp_path / "card", tmp_path / "frontier.html")
    assert read_card(tmp_path / "card") == card
    text = page.read_text()
    assert "<b>int4</b>" not in text
    assert 'href="../frontier.html"' in text
    assert "What was caught" in text
    assert "script" not in text.split("Content-Security-Policy")[1].split(">")[0]
    assert (tmp_path / "card" / "card.md").read_text().startswith("# ")
    assert any("rare" in line for line in card.unanswered)


def test_a_card_without_faults_says_so(tmp_path):
    card = judge_models(*models(0.0), Counting())
    assert not card.caught
    assert cards.headline(card).startswith("Nothing caught by")


def test_damaged_cards_and_suites_without_answer(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="judge again"):
        read_card(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        read_card(tmp_path)
    with pytest.raises(CannotAnswer, match="suite 'rare'"):
        judge_models(*models(0.0), Counting(), ["rare"])
    with pytest.raises(ConfigError, match="did you mean 'flips'"):
        judge_models(*models(0.0), Counting(), ["flipz"])
    with pytest.raises(ConfigError, match="named twice"):
        judge_models(*models(0.0), Counting(), ["flips", {"name": "flips", "most": 0.5}])
    silent = torch.nn.Identity()
    silent.outcomes = Outcomes({"score": torch.ones(3).numpy()})
    with pytest.raises(TaskError, match="suite 'calibration': the task gives score"):
        judge_models(silent, silent, Given(), ["calibration"])


def test_language_models_and_plain_judges_have_sections():
    task = get_task({"name": "shapes", "examples": 80})
    torch.manual_seed(0)
    model = task.build().eval()
    card = judge_models(model, task.build().eval(), task, ["flips", {"name": "corrupted", "strength": 0.3}])
    assert [section.name for section in card.sections] == ["flips", "corrupted"]
    assert card.sections[1].tables[0].rows[0][0] == "right under noise"


def test_third_parties_bring_suites_by_entry_point_and_by_file(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "from lessen.judges.suite import Section, Suite, SuiteOptions\n"
        "class Options(SuiteOptions):\n    word: str = 'hello'\n"
        "class Polite(Suite):\n"
        "    name, question, metrics, Options = 'polite', 'Is it polite?', {}, Options\n"
        "    def outcomes(self, model, split='test'): return self.task.outcomes(model, split)\n"
        "    def compare(self, before, after): return Section(self.name, self.question, (self.options.word,))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    card = judge_models(*models(0.0), Counting(), ["theirs.py:Polite"])
    assert card.caught == [("polite", "hello")]
    from importlib.metadata import EntryPoint

    from lessen import registry

    point = EntryPoint("polite", "theirs:Polite", "lessen.judges")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "lessen.judges" else [])
    card = judge_models(*models(0.0), Counting(), [{"name": "polite", "word": "please"}])
    assert card.caught == [("polite", "please")]
    assert SuiteOptions().task is None


def test_a_study_hands_its_task_to_suites_that_name_none():
    text = {
        "study": "s",
        "task": {"name": "shapes", "examples": 80},
        "judges": ["flips", {"name": "ood", "fit": 5}],
        "recipes": [{"name": "a", "steps": ["emb-half"]}],
    }
    study = Study.parse(text)
    assert [judge.origin["task"]["examples"] for judge in study.judges] == [80, 80]
    again = get_judge(dict(study.judges[1].origin))  # as another process builds it
    assert again.fingerprint() == study.judges[1].fingerprint()
    torch.manual_seed(0)
    outcomes = again.outcomes(study.task.build().eval())
    assert again.metrics["abet"](outcomes) > 0.0
