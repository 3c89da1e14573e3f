from __future__ import annotations

import random

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from lessen.data.scenes import FILM, FRAMES, KINDS, LOCATION, STILL, ask, draw_scene, paint
from lessen.errors import InputError, TaskError
from lessen.metrics import Outcomes
from lessen.metrics.base import find_metric
from lessen.tasks.multimodal.grid import WEIGHTS, GridOptions, GridTask
from lessen.tasks.multimodal.grid_model import IMAGE, TOKENS, build_grid_model, prompts
from lessen.tasks.multimodal.packing import packed
from lessen.tasks.multimodal.train_grid import answer_logits, guided_loss, lesson, taught, train_answers
from lessen.tasks.multimodal.words import UNKNOWN, WORDS, decode, encode


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_grid_model().eval()


@pytest.fixture(scope="module")
def task():
    return GridTask(GridOptions(questions=10, batch=6, timing_batch=2))


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_packed_questions_are_answered_as_single_prompts(model, frames):
    draw = random.Random(frames)
    scene = draw_scene(draw, frames)
    asked = sorted(
        (ask(scene, kind, draw) for kind in (STILL if frames == 1 else FILM)), key=lambda one: len(one.words.split())
    )
    pixels = paint(scene.cells, torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = answer_logits(model, taught(pixels, [asked], frames))[0]
        for number, one in enumerate(asked):
            alone = model(**prompts([one.words], frames), pixel_values=pixels).logits[0, -1]
            assert torch.allclose(together[number], alone, atol=1e-5)


def test_packed_questions_need_equal_lengths():
    with pytest.raises(InputError, match="same lengths in the same order"):
        packed([["what at r1 c2 ?"], ["how many ?"]], 1)


def test_words_are_tokens():
    assert len(WORDS) == len(set(WORDS))
    assert decode(encode("Row of RED star ?")) == "row of red ?"
    assert encode("star") == [UNKNOWN]
    draw = random.Random(0)
    for frames, kinds in ((1, STILL), (FRAMES, FILM)):
        for kind in kinds:
            one = ask(draw_scene(draw, frames), kind, draw)
            assert UNKNOWN not in encode(one.words) + encode(one.answer)


def test_batches_are_left_padded_prompts_and_the_same_again(task):
    seen = dict.fromkeys(KINDS, 0)
    for batch in task.batches("test"):
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert bool((mask[:, -1] == 1).all())
        pictures = int((ids == IMAGE).sum()) // TOKENS
        assert len(batch.inputs["pixel_values"]) == pictures == len(ids) * (1 if batch.kind[0] < 7 else FRAMES)
        for kind in batch.kind.tolist():
            seen[KINDS[kind]] += 1
    assert all(seen[kind] == 10 for kind in (*STILL, *FILM))
    assert seen["motion"] == 12
    assert task.fingerprint() == GridTask(task.options).fingerprint() != GridTask(GridOptions(seed=1)).fingerprint()
    assert list(task.slices("test")["kind"][:7]) == list(STILL)
    with pytest.raises(TaskError, match="no split 'dev'"):
        next(iter(task.batches("dev")))


def test_metrics_count_their_own_kinds(task):
    kinds = np.arange(len(KINDS))
    score = np.zeros((len(KINDS), 3))
    score[:, 1] = 1
    target = np.where(np.isin(kinds, [KINDS.index("what"), KINDS.index("order")]), 1, 0)
    outcomes = Outcomes({"score": score, "target": target, "kind": kinds}, given=frozenset({"target", "kind"}))
    assert task.metrics["location"](outcomes) == 1 / len(LOCATION)
    assert task.metrics["order"](outcomes) == 1
    assert task.metrics["row"](outcomes) == 0
    for metric in task.metrics.values():
        assert find_metric(metric.name)(outcomes) == metric(outcomes)


def test_keys_and_values_are_those_of_the_cache(model):
    task = GridTask(GridOptions(about="stills", questions=10, batch=7))
    outcomes = task.outcomes(model, "validation")
    assert task.costs(outcomes) == {"kv_bytes": 2 * 6 * 64 * 4}
    assert len(outcomes) == 4 * len(STILL)


@pytest.mark.parametrize("clip", [torch.zeros(0, 1, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(8, 1, 8, 8)])
def test_clips_of_another_form_are_refused(task, model, clip):
    with pytest.raises(InputError, match="of two frames or more"):
        task.answer_video(model, clip, "Which shape moves?")
    assert task.answer_video(model, torch.zeros(8, 1, 16, 16), "Which shape moves?") in WORDS
    with pytest.raises(InputError, match=r"reads clips as tensors .* not cat\.mp4"):
        task.answer_video(model, "cat.mp4", "Which shape moves?")


def test_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("lessen.tasks.multimodal.train_grid.EVERY", 1)
    monkeypatch.setattr("lessen.tasks.multimodal.train_grid.PICTURES", 1)

    def trained(*steps, checkpoint=None):
        torch.manual_seed(0)
        model = build_grid_model()
        for count in steps:
            train_answers(model, count, 0, checkpoint, rate=1e-3, stills_first=9, guided=True)
        return model.state_dict()

    whole, resumed = trained(2), trained(2, checkpoint=tmp_path / "state")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    again = trained(2, checkpoint=tmp_path / "state")  # nothing is left to do
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_guidance_is_least_where_it_is_followed(model):
    one = lesson(1, 5)
    assert one.shown.sum(-1).round(decimals=4).unique().tolist() == [0.0, 1.0]
    assert guided_loss(model, one) > torch.nn.functional.cross_entropy(
        answer_logits(model, one).flatten(0, 1), one.answers.flatten()
    )


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the trained weights are not part of this installation")
def test_the_reference_answers_far_above_chance():
    task = GridTask(GridOptions(questions=10, about="stills", batch=14))
    outcomes = task.outcomes(task.reference(), "validation")
    assert task.metrics["location"](outcomes) > 0.5
