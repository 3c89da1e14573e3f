"""State files as people have them: prefixes of wrappers, tied weights once or twice, other floating types."""

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from lessen.artifact import folder as artifact
from lessen.artifact.state import load_state, unwrapped
from lessen.errors import ArtifactError
from toy import ToyNet

IDS = torch.randint(0, 64, (9, 2), generator=torch.Generator().manual_seed(1))


def net(tied=False):
    model = ToyNet().eval()
    if tied:
        model.right.weight = model.left.weight
    return model


def written(tmp_path, tensors):
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    model = net()
    path = written(tmp_path, {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()})
    assert torch.equal(load_state(net(), path)(IDS), model(IDS))


def test_a_prefix_inside_a_name_is_taken_off_on_both_sides(tmp_path):
    model = net()
    state = {name.replace("hidden.", "hidden._orig_mod."): tensor for name, tensor in model.state_dict().items()}
    path = written(tmp_path, state)
    assert torch.equal(load_state(net(), path)(IDS), model(IDS))
    compiled = net()
    compiled.hidden = nn.Sequential()
    compiled.hidden.add_module("_orig_mod", nn.Linear(16, 16))
    plain = written(tmp_path, model.state_dict())
    load_state(compiled, plain)
    assert torch.equal(compiled.hidden._orig_mod.weight, model.hidden.weight)


@pytest.mark.parametrize("kept", ["left.weight", "right.weight"])
def test_tied_tensors_may_be_stored_once(tmp_path, kept):
    model = net(tied=True)
    gone = {"left.weight": "right.weight", "right.weight": "left.weight"}[kept]
    path = written(tmp_path, {name: tensor for name, tensor in model.state_dict().items() if name != gone})
    again = load_state(net(tied=True), path)
    assert torch.equal(again(IDS), model(IDS))
    assert again.left.weight is again.right.weight


def test_tied_tensors_stored_twice_must_agree(tmp_path):
    model = net(tied=True)
    state = dict(model.state_dict())
    assert torch.equal(load_state(net(tied=True), written(tmp_path, state))(IDS), model(IDS))
    state["right.weight"] = state["right.weight"] + 1
    with pytest.raises(ArtifactError, match=r"'left\.weight' and 'right\.weight' differ, but the model ties them"):
        load_state(net(tied=True), written(tmp_path, state))


def test_a_file_that_says_what_it_tied_fits_a_model_that_ties_nothing(tmp_path):
    model = net(tied=True)
    save_model(model, str(tmp_path / "m.safetensors"))
    again = load_state(net(), tmp_path / "m.safetensors")
    assert torch.equal(again(IDS), model(IDS))
    assert again.left.weight is not again.right.weight
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "right.weight"}
    with pytest.raises(ArtifactError, match=r"the file has no tensor 'right\.weight'"):
        load_state(net(), written(tmp_path, state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_converted(tmp_path, dtype):
    model = net()
    path = written(tmp_path, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    again = load_state(net(), path)
    assert again.out.weight.dtype == torch.float32
    assert torch.allclose(again(IDS), model(IDS), atol=0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("out.bias"), r"the file has no tensor 'out\.bias'"),
        (lambda s: s.update(more=torch.ones(1)), "no tensor 'more'"),
        (lambda s: s.update({"out.bias": torch.ones(2)}), r"'out\.bias' has shape \[2\]"),
        (lambda s: s.update({"out.bias": torch.ones(1, dtype=torch.int64)}), "int64"),
        (lambda s: s.update({"_orig_mod.out.bias": torch.ones(1)}), "one tensor once wrappers are taken off"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, match):
    state = dict(net().state_dict())
    change(state)
    with pytest.raises(ArtifactError, match=match) as caught:
        load_state(net(), written(tmp_path, state))
    assert "\n" not in str(caught.value)


def test_a_compiled_or_parallel_model_is_saved_and_loaded_as_the_model_inside(tmp_path):
    model = net()
    for number, wrapped in enumerate(
        (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model)))
    ):
        assert unwrapped(wrapped) is model
        artifact.save(tmp_path / str(number), wrapped, wrapped)
        again = artifact.load(tmp_path / str(number), model=wrapped)
        assert type(again) is ToyNet
        assert torch.equal(again(IDS), model(IDS))
