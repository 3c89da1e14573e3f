"""Dual encoders: the exact toy of the bag of concepts, cuts and ranks, files of others, and models that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.judges.seers import Looking, Matching, Seer
from lessen.errors import DataError
from lessen.judges import get_judge, towers
from lessen.judges.association import Association
from lessen.judges.suite import CannotAnswer
from lessen.tasks import get_task


def bias(model: Seer) -> float:
    judge = get_judge({"name": "association", "draws": 1}, task=Looking())
    return Association.metrics["bias"](judge.outcomes(model))


def test_the_bag_of_concepts_answers_with_the_others_colour_only_where_concepts_are_associated():
    """With l.y = rho the right answer scores sqrt(2 + 2 rho), the wrong one (2 + 2 rho) / sqrt(2)."""
    assert bias(Seer(binds=True)) == 0.0
    assert bias(Seer(binds=False, rho=0.3)) == 1.0
    assert bias(Seer(binds=False, rho=-0.3)) < 0.1


def test_single_objects_are_right_and_swapped_colours_are_the_control():
    judge = get_judge({"name": "association", "draws": 1}, task=Looking())
    bag, binds = judge.outcomes(Seer(binds=False)), judge.outcomes(Seer())
    assert bag["correct"][bag["kind"] == 0].all()
    assert binds["correct"][binds["kind"] == 2].all()
    section = judge.compare(binds, bag)
    assert section.figures["bias"] == [0.0, 1.0]
    assert section.caught[0].startswith("binding is lost")


def test_photographs_come_in_folders(tmp_path):
    for name, value in (("lemon-yellow", (242, 217, 26)), ("eggplant-purple", (115, 26, 140))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60, 40), value).save(tmp_path / name / "1.png")
    judge = get_judge({"name": "association", "data": str(tmp_path), "draws": 1}, task=Looking())
    assert set(judge._objects()) == {"lemon", "eggplant"}
    (tmp_path / "eggplant-purple" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no picture that can be read"):
        judge.outcomes(Seer())
    with pytest.raises(DataError, match="holds 0 objects"):
        get_judge({"name": "association", "data": "nowhere"}, task=Looking()).outcomes(Seer())


# -- conditional similarity --------------------------------------------------------------------------------------------
def test_a_model_that_hears_finds_all_and_a_deaf_one_loses_composition_alone():
    judge = get_judge({"name": "conditional", "most": 40}, task=Matching())
    hears, deaf = judge.outcomes(Seer()), judge.outcomes(Seer(listens=0.2))
    assert (hears["rank both"] == 0).all()
    section = judge.compare(hears, deaf)
    assert all("composition is lost" in each for each in section.caught)
    assert len(section.caught) == 2
    recalls = section.figures["change_colour"]["both"]["after"]
    assert recalls == sorted(recalls)


def test_ties_count_against_the_target():
    judge = get_judge({"name": "conditional", "most": 10}, task=Matching())
    collapsed = type("Collapsed", (Matching,), {"encode_images": lambda self, model, x: torch.ones(len(x), 8)})()
    judge = get_judge({"name": "conditional", "most": 10}, task=collapsed)
    assert (judge.outcomes(Seer())["rank both"] > 0).all()


def test_the_cut_is_not_symmetrical():
    assert towers.cut((100, 100, 50, 20), 1000, 1000) == (65, 86, 150, 120)
    assert towers.cut((10, 5, 50, 20), 60, 30) == (0, 0, 60, 30)


def test_annotation_files_are_read(tmp_path):
    Image.new("RGB", (50, 30), (200, 10, 10)).save(tmp_path / "000000000007.jpg")
    item = {"val_image_id": 7}
    row = {"reference": item, "target": item, "gallery": [item, item], "condition": "red"}
    (tmp_path / "change_object.json").write_text(json.dumps([row, row]))
    judge = get_judge({"name": "conditional", "data": str(tmp_path), "objects": str(tmp_path)}, task=Matching())
    outcomes = judge.outcomes(Seer())
    assert len(outcomes) == 2
    assert np.array_equal(outcomes["rank both"], [2, 2])  # the same picture three times: both distractors tie
    with pytest.raises(DataError, match="objects=FOLDER"):
        get_judge({"name": "conditional", "data": str(tmp_path)}, task=Matching()).outcomes(Seer())
    (tmp_path / "change_object.json").write_text('[{"reference": 3}]')
    with pytest.raises(DataError, match="no annotation file of GeneCIS"):
        judge._read()


@pytest.mark.parametrize("suite", ["association", "conditional"])
def test_other_models_are_refused(suite):
    shapes = get_task({"name": "shapes", "examples": 80})
    with pytest.raises(CannotAnswer, match="needs a dual encoder"):
        get_judge(suite, task=shapes).outcomes(shapes.build())


def test_a_hugging_face_model_with_two_towers_is_encoded():
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = transformers.CLIPModel(config).eval()

    class Host(Matching):
        encode_texts = encode_images = None

        class options:
            model = "somewhere"

    assert towers.unable(model, Host()) == ""
    pictures = torch.rand(2, 3, 50, 50)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(towers, "_normalisation", lambda task: ((0.5,) * 3, (0.5,) * 3, 32))
    found = towers.encode_images(model, Host(), pictures)
    monkey.undo()
    assert found.shape == (2, 8)
