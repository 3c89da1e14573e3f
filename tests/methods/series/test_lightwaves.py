"""LightWaveS as a method: what it keeps, on models of one's own too, beside other steps, in a study, and its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lessen
from lessen.errors import NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.series.lightwaves import LightWaveS
from lessen.methods.weights.dynamic_int8 import DynamicInt8Linears
from lessen.recipe import Recipe
from lessen.series import LightWaves, LightWavesSettings
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.series.wavelet_bank import WaveletBank
from lessen.tasks.series.waves import WavesOptions, WavesTask


@pytest.fixture(scope="module")
def task():
    return WavesTask(WavesOptions(rows=150, channels=2, told=1, length=40, classes=3, noise=1.0))


@pytest.fixture(scope="module")
def model(task):
    return task.reference()


def test_it_finds_the_channel_and_keeps_the_quality(task, model):
    small, ledger = Recipe([LightWaveS(features=60, before=180)]).apply(model, task)
    assert small.bank.features == small.head.in_features == 60
    share = (small.bank.channel == 0).float().mean()
    assert share > 0.8
    assert task.score(small, "test") > task.score(model, "test") - 0.1
    assert ledger[0].findings["channels"] == small.bank.used_channels


def test_it_is_the_estimator(task, model):
    train, test = task.split("train"), task.split("test")
    small = LightWaveS(features=40, before=90).apply(task.reference(), task, Context())
    alone = LightWaves(LightWavesSettings(features=40, before=90)).fit(train.values.numpy(), train.classes.numpy())
    assert sorted(map(tuple, small.bank.rows.tolist())) == sorted(map(tuple, alone.rows.tolist()))
    with torch.no_grad():
        assert torch.allclose(small(test.values), torch.from_numpy(alone.decision(test.values.numpy())), atol=1e-3)


class Own(nn.Module):
    """A user's model: a bank inside, a head that reads it, and more behind."""

    def __init__(self):
        super().__init__()
        self.part = nn.ModuleDict({"features": WaveletBank.full(2, 40)})
        self.out = nn.Linear(2 * 4032, 3)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, series):
        return self.out(self.part["features"](series)) * self.temperature


def test_a_model_of_ones_own_and_other_steps(task, tmp_path):
    own, base = task.view(build=Own), Own()
    small, _ = Recipe([LightWaveS(), DynamicInt8Linears()]).apply(base, own)
    lessen.save(tmp_path / "small", small, base)
    loaded = lessen.load(tmp_path / "small", model=Own())
    series = task.split("test").values
    assert loaded.part["features"].features == 500
    assert isinstance(loaded.out.layer, Int8Linear)
    with torch.no_grad():
        assert torch.equal(loaded(series), small(series))


def test_int8_after_it_keeps_the_classes(task, model):
    """Features differ by a factor of millions: without factors on them two thirds of the answers changed."""
    small, _ = Recipe([LightWaveS()]).apply(model, task)
    both, _ = Recipe([LightWaveS(), DynamicInt8Linears()]).apply(model, task)
    series = task.split("test").values
    with torch.no_grad():
        assert (both(series).argmax(1) == small(series).argmax(1)).float().mean() >= 0.97


def test_refusals(task, model):
    with pytest.raises(NothingMatchedError, match="holds 8064 features already"):
        LightWaveS(features=9_000, before=9_000).apply(task.reference(), task, Context())
    with pytest.raises(NothingMatchedError, match="does not read the bank's 8064 features"):
        LightWaveS().apply(nn.ModuleDict({"bank": model.bank, "head": nn.Linear(5, 3)}), task, Context())
    with pytest.raises(NothingMatchedError, match="2 banks"):
        LightWaveS().apply(nn.ModuleList([WaveletBank.full(1, 9), WaveletBank.full(1, 9)]), task, Context())
    flat = task.view(inputs=lambda batch: batch[0].flatten(1))
    with pytest.raises(TaskError, match=r"series \[n, channels, length\]"):
        LightWaveS().apply(task.reference(), flat, Context())
    more = task.view(target=lambda batch: batch[1] + 1)
    with pytest.raises(TaskError, match="classes 1 to 3, the model's head 0 to 2"):
        LightWaveS().apply(task.reference(), more, Context())
