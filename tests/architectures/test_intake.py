"""Models people write: wrapped, hooked, shared, odd; each works, or is one line that names what is in the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lessen
from lessen.architectures.intake import private_copy
from lessen.errors import InputError, LessenError

ROWS = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
LABELS = (ROWS[:, 0] > 0).float()
PARTS = {"train": slice(0, 30), "validation": slice(30, 60), "test": slice(60, 90)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 1)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x))))).squeeze(-1)


class Judge(lessen.Task):
    name = "rows"
    metrics = {"auc": lessen.AUC}

    def build(self):
        return Net()

    def batches(self, split, seed=0):
        return [(ROWS[PARTS[split]], LABELS[PARTS[split]])]

    def loss(self, model, batch):
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def compress(model):
    return lessen.compress(model, Judge(), {"linear-int8": {"min_weights": 1}}, margin=0.5)


def compiled(model):
    return torch.compile(model, backend="eager")


def inside(model):
    model.b = torch.compile(model.b, backend="eager")
    return model


def in_place(model):
    model.compile(backend="eager")
    return model


def shared(model):
    model.again = model.b
    return model


@pytest.mark.parametrize("wrap", [compiled, inside, in_place, nn.DataParallel, shared, lambda model: model])
def test_wrapped_and_shared_models_are_compressed_as_they_are_written(wrap, tmp_path):
    model = Net()
    expected = compress(model).model(ROWS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trade = compress(wrap(model))
    assert torch.equal(trade.model(ROWS), expected)
    assert {type(layer).__name__ for layer in (trade.model.a, trade.model.b, trade.model.c)} == {"Int8Linear"}
    trade.save(tmp_path / "small")
    blank = Net()
    if wrap is shared:
        shared(blank)
    assert torch.equal(lessen.load(tmp_path / "small", model=blank)(ROWS), expected)
    kept = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


def hooked(model):
    model.b.register_forward_hook(lambda *_: None)
    return model


def weight_normed(model):
    nn.utils.parametrizations.weight_norm(model.b)
    return model


@pytest.mark.parametrize("change", [hooked, weight_normed])
def test_layers_that_would_lose_something_are_left_alone_by_name(change):
    trade = compress(change(Net()))
    assert not type(trade.model.b).__name__.startswith("Int8")
    assert list(trade.measurement.steps[0]["findings"]["skipped"]) == ["b"]


def text_buffer(model):
    model._buffers["name"] = "text"
    return model


def lazy(_):
    return nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1), nn.Flatten(0))


def generator(model):
    model.rows = (n for n in range(3))
    return model


def quantised(model):
    with pytest.warns(DeprecationWarning, match="quantization"):
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def two_tensors(_):
    class Two(Net):
        def forward(self, x):
            return super().forward(x), x

    return Two()


REFUSED = {
    "buffer": (text_buffer, "buffer name of the model is a str"),
    "lazy": (lazy, "0.weight of the model has no size yet"),
    "meta": (lambda model: model.to("meta"), r"a.weight of the model has no memory \(device meta\)"),
    "quantised": (quantised, "a.* of the model is quantised by torch"),
    "generator": (generator, "Net cannot be copied .*keep what holds files, generators or locks outside"),
    "tuple": (two_tensors, "Two returned a tuple with the tensors 0, 1"),
    "bfloat16": (lambda model: model.bfloat16(), "cannot call Net on its first test batch: .*BFloat16"),
    "scripted": (torch.jit.script, "the whole of the model is TorchScript"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_compressed_is_one_line_that_names_it(what):
    make, said = REFUSED[what]
    with pytest.raises(LessenError, match=said) as caught:
        compress(make(Net()))
    assert "\n" not in str(caught.value)


def test_a_copy_is_private_and_out_of_its_wrappers():
    model = nn.DataParallel(nn.Sequential(compiled(nn.Linear(2, 2)), nn.Dropout())).train()
    made = private_copy(model)
    assert [type(child).__name__ for child in made] == ["Linear", "Dropout"]
    assert not made.training
    assert model.training
    made[0].weight.data.zero_()
    assert not torch.equal(model.module[0]._orig_mod.weight, made[0].weight)


def test_state_that_is_no_tensor_is_named():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(InputError, match="0._extra_state in the state of the model is a dict, not a tensor"):
        private_copy(nn.Sequential(Extra(2, 2)))
