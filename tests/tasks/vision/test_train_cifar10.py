from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from lessen.data.cifar10 import Cifar10, Images
from lessen.errors import InputError
from lessen.tasks.vision import train_cifar10
from lessen.tasks.vision.train_cifar10 import Settings, drop_patches, export, train
from lessen.tasks.vision.vit import ViTOptions
from lessen.train.schedules import Schedule

OPTIONS = ViTOptions(width=16, depth=1, heads=2, stem=(4, 4))
SETTINGS = Settings(epochs=4, cooldown=2, full=1, batch=16, warmup_steps=3, keep_tokens=20)


@pytest.fixture
def data(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def images(count):
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Images(pixels, torch.randint(0, 10, (count,), generator=generator))

    splits = Cifar10(images(48), images(16), images(16))
    monkeypatch.setattr(train_cifar10, "load_cifar10", lambda package: splits)
    return splits


def test_the_rate_warms_up_stays_and_falls_to_zero():
    schedule = Schedule(SETTINGS.for_loop(48), 12)
    rates = [round(schedule.rate(step) / SETTINGS.learning_rate, 3) for step in range(12)]
    assert rates == [0.333, 0.667, 1.0, 1.0, 1.0, 1.0, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167]


def test_a_killed_run_continues_exactly(data, tmp_path, monkeypatch):
    whole = train(tmp_path, tmp_path / "whole", SETTINGS, OPTIONS)
    judge = train_cifar10.accuracy
    for until in (2, 4):  # killed in the constant phase, then in the cooldown
        left = [until]

        def dies(model, images, left=left):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return judge(model, images)

        monkeypatch.setattr(train_cifar10, "accuracy", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, tmp_path / "parts", SETTINGS, OPTIONS)
        monkeypatch.setattr(train_cifar10, "accuracy", judge)
    parts = train(tmp_path, tmp_path / "parts", SETTINGS, OPTIONS)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_a_finished_run_can_be_lengthened_from_its_constant_part(data, tmp_path):
    train(tmp_path, tmp_path / "run", SETTINGS, OPTIONS)
    longer = train(tmp_path, tmp_path / "run", dataclasses.replace(SETTINGS, epochs=5), OPTIONS)
    direct = train(tmp_path, tmp_path / "direct", dataclasses.replace(SETTINGS, epochs=5), OPTIONS)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(tensor, longer.state_dict()[name]), name


def test_another_recipe_does_not_continue_this_one(data, tmp_path):
    train(tmp_path, tmp_path / "run", SETTINGS, OPTIONS)
    with pytest.raises(InputError, match="other settings"):
        train(tmp_path, tmp_path / "run", dataclasses.replace(SETTINGS, batch=8), OPTIONS)


def test_dropping_keeps_the_class_token_and_distinct_patches():
    tokens = torch.arange(65.0)[None, :, None].expand(3, -1, 2)
    kept = drop_patches(tokens, 20, torch.Generator().manual_seed(0))[..., 0]
    assert kept.shape == (3, 21)
    assert (kept[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 21 for row in kept)


def test_the_newest_state_is_exported_with_a_card(data, tmp_path):
    with pytest.raises(InputError, match="holds no training state"):
        export(tmp_path / "run", tmp_path / "vit.safetensors", data.test, OPTIONS)
    model = train(tmp_path, tmp_path / "run", SETTINGS, OPTIONS)
    score = export(tmp_path / "run", tmp_path / "vit.safetensors", data.test, OPTIONS)
    saved = load_file(tmp_path / "vit.safetensors")
    assert all(torch.equal(saved[name], tensor.half()) for name, tensor in model.state_dict().items())
    card = (tmp_path / "vit.md").read_text()
    assert "4 epochs (learning rate fallen)" in card
    assert f"{100 * score:.2f} %" in card
