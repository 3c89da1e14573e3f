"""Questions about videos: rules, files, clips that one frame cannot answer; evidence marked once for both models."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.judges import planted
from lessen.data.clips import VideoQuestion, drawn_clips, match, read_video_questions
from lessen.errors import DataError
from lessen.judges import get_judge
from lessen.judges.attribution import Selector, mixed
from lessen.judges.suite import CannotAnswer
from lessen.tasks import get_task

CHOICE = VideoQuestion("multi-choice", "speed", "7", "How?\nA. fast\nB. slow\nC. not", "B. slow")
YES = VideoQuestion("yes_no", "order", "7", "Is it so?", "yes")
CAPTION = VideoQuestion(
    "caption_matching", "direction", "7", "Which fits?\nCaption A: It goes left.\nCaption B: It goes right.", "Caption B: It goes right."
)  # fmt: skip


@pytest.mark.parametrize(
    ("item", "said", "found"),
    [
        (CHOICE, "B. slow", True), (CHOICE, "B", True), (CHOICE, "B)", True), (CHOICE, "A. fast</s>", False),
        (CHOICE, " C ", False), (CHOICE, "slow", None), (CHOICE, "A man walks", None), (CHOICE, "", None), (CHOICE, "b", None),
        (YES, "Yes, it is", True), (YES, "no.", False), (YES, "NO", False), (YES, "It is", None), (YES, "", None),
        (CAPTION, "Caption B: It goes right.", True), (CAPTION, "It goes right", True), (CAPTION, "B", True),
        (CAPTION, "Caption A", False), (CAPTION, "A) It goes left.", False), (CAPTION, "It goes left.", False),
        (CAPTION, "both", None),
    ],
)  # fmt: skip
def test_answers_are_read_by_the_rules(item, said, found):
    assert match(item, said) is found


def test_right_answers_are_100_and_a_constant_yes_is_half():
    _, questions = drawn_clips(20)
    assert all(match(each, each.answer) for each in questions)
    yes = [match(each, "yes") for each in questions if each.task == "yes_no"]
    assert sum(yes) / len(yes) == pytest.approx(0.5, abs=0.15)
    assert questions[0].prompt.endswith("Please directly give the best option:")


def test_copies_share_their_root_and_differ_in_their_answers_only():
    clips, questions = drawn_clips(4)
    forward = {q.aspect: q.answer for q in questions if q.video == "0" and q.task == "multi-choice"}
    backward = {q.aspect: q.answer for q in questions if q.video == "0_reverse" and q.task == "multi-choice"}
    assert forward["direction"] != backward["direction"]
    assert forward["action"] == backward["action"]
    assert {each.root for each in questions} == {"0", "1", "2", "3"}
    assert torch.equal(clips["0"].flip(0), clips["0_reverse"])  # the same frames


def test_no_letter_and_no_place_in_one_frame_answers():
    clips, questions = drawn_clips(200, seed=3)
    for aspect in ("action", "direction", "speed"):
        asked = [q for q in questions if q.aspect == aspect and q.task == "multi-choice"]
        first = sum(q.answer[0] == "A" for q in asked) / len(asked)
        assert first == pytest.approx(0.5, abs=0.1)
        lit = [clips[q.video][4, 0].any(dim=0).nonzero().float().mean() > 7.5 for q in asked]
        one = sum(side == (q.answer[3:] in ("right", "fast", "bar")) for side, q in zip(lit, asked, strict=True))
        assert one / len(asked) == pytest.approx(0.5, abs=0.12)


def test_dropping_frames_leaves_action_and_takes_time():
    judge = get_judge("video", task=planted.Watching())
    section = judge.compare(judge.outcomes(planted.Watcher(8)), judge.outcomes(planted.Watcher(1)))
    assert section.figures["action"]["after"] == section.figures["action"]["before"] == 1.0
    assert section.figures["direction"]["before"] == 1.0
    assert section.figures["direction"]["after"] < 0.7
    assert {each.split(" ")[0] for each in section.caught} == {"direction", "speed"}
    assert section.figures["whole roots"][0] == 1.0
    assert section.figures["temporal gap"] > 0.3


def test_files_are_read_and_faults_told(tmp_path):
    (tmp_path / "questions").mkdir()
    item = {"question": CHOICE.question, "answer": CHOICE.answer}
    (tmp_path / "questions" / "multi-choice.json").write_text(json.dumps({"7_reverse": {"speed": [item]}}))
    assert read_video_questions(tmp_path)[0].root == "7"
    judge = get_judge({"name": "video", "data": str(tmp_path)}, task=planted.Watching())
    with pytest.raises(DataError, match=r"no video 7_reverse\.\*"):
        judge.outcomes(planted.Watcher(8))
    (tmp_path / "questions" / "yes_no.json").write_text('{"7": 3}')
    with pytest.raises(DataError, match="no file of questions about videos"):
        read_video_questions(tmp_path)
    with pytest.raises(DataError, match="tasks: multi-choice"):
        read_video_questions(tmp_path / "nowhere")
    shapes = get_task({"name": "shapes", "examples": 80})
    with pytest.raises(CannotAnswer, match="answer_video"):
        get_judge("video", task=shapes).outcomes(shapes.build())


# -- attribution -------------------------------------------------------------------------------------------------------
def test_marked_part_and_rest_are_complements():
    pictures, marks = torch.rand(3, 2, 8, 8), torch.rand(3, 1, 8, 8)
    kept, rest = mixed(pictures, marks, torch.zeros(1, 2, 8, 8))
    assert torch.allclose(kept + rest, pictures)
    assert torch.equal(mixed(pictures, torch.ones(3, 1, 8, 8), torch.zeros(1))[0], pictures)
    marked = Selector(2)(pictures)
    assert marked.shape == (3, 1, 8, 8)
    assert 0 < marked.min() <= marked.max() < 1


def test_the_selector_finds_the_evidence_and_another_reason_is_caught():
    task, one, other = planted.two_patches(0)
    judge = get_judge({"name": "attribution", "steps": 50}, task=task)
    before, after = judge.outcomes(one), judge.outcomes(other)
    section = judge.compare(before, after)
    assert before["whole"].mean() > 0.9
    assert after["whole"].mean() > 0.9  # as accurate, from the other corner
    assert before["marked"].mean() > 0.9
    assert section.figures["elsewhere"] > 0.9
    assert any("for another reason" in each for each in section.caught)


def test_what_is_no_picture_is_refused():
    task = planted.blobs(0)
    with pytest.raises(CannotAnswer, match="needs pictures with classes"):
        get_judge("attribution", task=task).outcomes(task.build().eval())
    task, one, _ = planted.two_patches(1)
    blind = torch.nn.Sequential(Blind(), *one)
    with pytest.raises(CannotAnswer, match="no gradient"):
        get_judge("attribution", task=task).outcomes(blind)


class Blind(torch.nn.Module):
    def forward(self, pictures):
        return pictures.detach().round()
