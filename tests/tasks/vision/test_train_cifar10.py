from __future__ import annotations

import dataclasses

import pytest
import torch

from lessen.data.cifar10 import Cifar10, Images
from lessen.errors import InputError
from lessen.tasks.vision import train_cifar10
from lessen.tasks.vision.train_cifar10 import Settings, Training, drop_patches, train
from lessen.tasks.vision.vit import ViTOptions

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


def test_the_rate_warms_up_stays_and_falls_to_zero(data):
    run = Training(data.train, OPTIONS, SETTINGS)
    rates = []
    for run.step in range(12):
        rates.append(round(run.rate(), 3))
    assert rates == [0.333, 0.667, 1.0, 1.0, 1.0, 1.0, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167]


def test_a_killed_run_continues_exactly(data, tmp_path):
    whole = train(tmp_path, tmp_path / "whole", SETTINGS, OPTIONS)
    for until in (1, 3):  # killed in the constant phase, then in the cooldown

        class Killed(Exception):
            pass

        def stop(run, until=until):
            if run.epoch == until:
                raise Killed
            return Training.run_epoch(run)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_cifar10, "Training", type("Dying", (Training,), {"run_epoch": stop}))
            with pytest.raises(Killed):
                train(tmp_path, tmp_path / "parts", SETTINGS, OPTIONS)
    parts = train(tmp_path, tmp_path / "parts", SETTINGS, OPTIONS)
    assert parts.epoch == 4
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


def test_a_finished_run_can_be_lengthened_from_its_constant_part(data, tmp_path):
    train(tmp_path, tmp_path / "run", SETTINGS, OPTIONS)
    longer = train(tmp_path, tmp_path / "run", dataclasses.replace(SETTINGS, epochs=5), OPTIONS)
    direct = train(tmp_path, tmp_path / "direct", dataclasses.replace(SETTINGS, epochs=5), OPTIONS)
    for name, tensor in direct.model.state_dict().items():
        assert torch.equal(tensor, longer.model.state_dict()[name]), name


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
