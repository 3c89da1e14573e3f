"""Questions with letters: the released evaluator's readings and scores, the strict ones, and data that are none."""

from __future__ import annotations

import re

import pytest

from benchmarks.judges.examinee import Examinee, Reading, examination
from lessen.data.questions import NO, YES, parse, parse_robust, read_questions, score
from lessen.errors import ConfigError, DataError
from lessen.judges import get_judge
from lessen.judges.suite import CannotAnswer
from lessen.tasks import get_task

ODD = [
    "B", " b B", "GDP growth: B", "答案：C。", "A, B and D", "（Ｂ）", "Ｂ", "AB D", "D、C", "正确", "不正确", "错误，不正确", "",
    "...", "the answer is (C)", "Answer: C", "AAAB", "选 A、C、E", "A\nB", "1. A", "没有", "ABCDEF", "E", "F", "错误",
    "该说法正确，不是错误", "A或B", "\tD\t", "C!!!", "?", "x A",
]  # fmt: skip


def released(kind: str, text: str) -> str:
    """The three regular expressions of the sheet, written apart from ours."""
    kept = "".join(letter for letter in text if letter == "_" or letter.isalnum() or letter.isspace())
    kept = "".join(kept.split())
    pattern = {"single": "[A-Z]", "multi": "[A-E]+", "judgment": f"{YES}|{NO}"}[kind]
    found = re.findall(pattern, kept)
    return found[0] if found else ""


@pytest.mark.parametrize("kind", ["single", "multi", "judgment"])
def test_answers_are_read_as_the_released_evaluator_reads_them(kind):
    assert len(ODD) >= 30
    assert [parse(kind, text) for text in ODD] == [released(kind, text) for text in ODD]


def test_known_faults_stay_in_the_parity_score_and_not_in_the_robust_one():
    assert parse("single", "GDP growth: B") == "G"
    assert parse_robust("single", "GDP growth: B") == "B"
    assert parse("judgment", "不正确") == YES
    assert parse("single", "Ｂ") == ""
    assert parse_robust("single", "Ｂ") == "B"
    assert parse_robust("multi", "BA") == "AB"
    assert score("multi", "", "AB") == 0.5
    assert score("multi", "", "AB", strict=True) == 0.0
    assert score("multi", "BA", "AB") == 0.5
    assert [score("multi", each, "ABD") for each in ("ABD", "AD", "AC")] == [1.0, 0.5, 0.0]
    with pytest.raises(DataError, match="no type of question"):
        score("essay", "A", "A")


def test_all_right_is_100_and_nothing_read_is_0(tmp_path):
    answers = examination(tmp_path, 8)
    judge = get_judge({"name": "multiple-choice", "data": str(tmp_path), "mode": "written"}, task=Reading())
    knows, silent = Examinee(answers, 0.0), Examinee(answers, 0.0, silent=1.0)
    section = judge.compare(judge.outcomes(knows), judge.outcomes(silent))
    every = section.figures["all"]
    assert every["points"] == [1.0, 0.0]
    assert every["strict"] == [1.0, 0.0]
    assert section.lines[1].endswith("100.00 before, 20.00 after.")  # 0.4 of the weight, half points for nothing
    assert any("the form is lost" in each for each in section.caught)


def test_likelihood_and_writing_ask_the_same_and_one_subject_is_found(tmp_path):
    answers = examination(tmp_path, 40)
    for mode in ("likelihood", "written"):
        judge = get_judge(
            {"name": "multiple-choice", "data": str(tmp_path), "mode": mode, "most": None}, task=Reading()
        )
        before = judge.outcomes(Examinee(answers, 0.1))
        after = judge.outcomes(Examinee(answers, 0.5, subject="2-1"))
        assert before["right"].mean() == pytest.approx(0.9, abs=0.05)
        section = judge.compare(before, after)
        assert any(each.startswith("2-1 loses") for each in section.caught)
        assert not any(each.startswith("1-1 loses") for each in section.caught)
    assert (
        judge.fingerprint()
        != get_judge({"name": "multiple-choice", "data": str(tmp_path)}, task=Reading()).fingerprint()
    )


def test_tables_of_any_language_are_read(tmp_path):
    (tmp_path / "history.csv").write_text(",Question,A,B,C,D,Answer\n0,Who?,Ann,Ben,Cid,Dee,C\n1,When?,1,2,3,4,A\n")
    found = read_questions(tmp_path)
    assert [(each.answer, each.subject, each.kind) for each in found] == [
        ("C", "history", "single"),
        ("A", "history", "single"),
    ]
    assert found[0].text == "Who?\nA. Ann\nB. Ben\nC. Cid\nD. Dee"
    judge = get_judge({"name": "multiple-choice", "data": str(tmp_path), "prompt": "{text}\nAnswer:"}, task=Reading())
    assert judge._prompt(found[0]).endswith("D. Dee\nAnswer:")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",Question,A,B,C,D,Answer\n0,Who?,Ann,Ben,Cid,Dee,F\n", "line 2"),
        (None, "holds no questions"),
    ],
)
def test_data_that_are_none(tmp_path, text, words):
    if text is not None:
        (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        get_judge({"name": "multiple-choice", "data": str(tmp_path)}, task=Reading())


def test_models_that_cannot_be_asked(tmp_path):
    examination(tmp_path, 2)
    (tmp_path / "val" / "single_choice" / "1-1.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="line 1"):
        get_judge({"name": "multiple-choice", "data": str(tmp_path)}, task=Reading())
    with pytest.raises(DataError, match="no folder of questions"):
        get_judge({"name": "multiple-choice", "data": "nowhere"}, task=Reading())
    with pytest.raises(ConfigError, match="data"):
        get_judge("multiple-choice", task=Reading())
    examination(tmp_path, 2)
    shapes = get_task({"name": "shapes", "examples": 80})
    with pytest.raises(CannotAnswer, match="needs a language model with its tokenizer"):
        get_judge({"name": "multiple-choice", "data": str(tmp_path)}, task=shapes).outcomes(shapes.build())
