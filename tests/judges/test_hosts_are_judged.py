"""Cards of models that are not ours: a Hugging Face image classifier, a text classifier, and language models."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.judges.planted import disturbed
from lessen.judging import judge_models
from lessen.metrics import ACCURACY
from lessen.task import Task
from lessen.tasks import get_task

transformers = pytest.importorskip("transformers")


class Pictures(Task):
    """Pictures that a tiny vision Transformer sorts; batches are those of a Hugging Face data loader."""

    name = "pictures-of-a-host"
    metrics = {"accuracy": ACCURACY}
    inputs_of = "pixel_values"

    def __init__(self, model, calls):
        self.model, self.calls = model, calls

    def build(self):
        return copy.deepcopy(self.model)

    def batches(self, split, seed=0):
        yield from self.calls

    def fingerprint(self):
        return "pictures"


def image_classifier():
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, num_labels=3
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    calls = []
    for _ in range(2):
        pictures = torch.randn(60, 3, 16, 16) + torch.randn(60, 3, 1, 1)
        calls.append(({"pixel_values": pictures}, torch.arange(60) % 3))
    return Pictures(model, calls), model


def text_classifier():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(config).eval()
    calls = []
    for _ in range(2):
        ids = torch.randint(1, 50, (60, 12))
        calls.append(({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(60) % 3))
    return Pictures(model, calls), model


def test_an_image_classifier_of_hugging_face():
    task, model = image_classifier()
    asked = ["metrics", "flips", "calibration", {"name": "ood", "fit": 5}, "complexity", "representation", "width",
             {"name": "shortcut", "examples": 50}, {"name": "attribution", "steps": 1}]  # fmt: skip
    card = judge_models(model, disturbed(model, 0.3), task, asked)
    assert [section.name for section in card.sections] == [
        each if isinstance(each, str) else each["name"] for each in asked
    ]
    silent = judge_models(model, copy.deepcopy(model), task, asked)
    assert not silent.caught


def test_a_text_classifier_of_hugging_face():
    task, model = text_classifier()
    card = judge_models(model, disturbed(model, 0.3), task, ["flips", {"name": "ood", "fit": 5}, "complexity", "width"])
    assert set(card.sections[1].figures) == {"msp", "energy", "odin", "abet"}
    every = judge_models(model, copy.deepcopy(model), task)
    assert not every.caught


def test_a_language_model_has_a_card_and_says_what_it_cannot_answer():
    task = get_task({"name": "language-tiny", "documents": 2})
    torch.manual_seed(0)
    model = task.build().eval()
    card = judge_models(model, copy.deepcopy(model), task)
    assert {section.name for section in card.sections} == {"metrics", "flips"}
    assert not card.caught
    assert len(card.unanswered) == 3
    assert all(line.count("\n") == 0 for line in card.unanswered)
