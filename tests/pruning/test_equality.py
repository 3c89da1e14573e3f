"""What slices compute is what masks compute, for every kind alone and together, on hosts that are not ours."""

from __future__ import annotations

import copy

import pytest
import torch

from host_models import answer, host, inputs
from lessen.errors import InputError
from lessen.pruning.choice import Choice
from lessen.pruning.costs import read_costs
from lessen.pruning.layout import read_layout
from lessen.pruning.masks import masked
from lessen.pruning.slicing import carry_out
from lessen.tasks.vision.vit import PlainViT

KINDS = ("heads", "units", "layers", "width")
HOSTS = ("minilm", "vit", "clip", "llama", "mistral", "qwen2", "qwen3", "distilbert", "dinov2", "siglip", "t5-gated")
NO_WIDTH = {"clip", "siglip", "t5-gated", "dinov2"}
"""Models of several stacks, and one with a scale on each branch."""


def made(name):
    if name == "ours":
        torch.manual_seed(0)
        model = PlainViT(image_size=16, patch_size=4, width=32, depth=3, heads=4, classes=5, stem=())
        return model.eval(), torch.randn(2, 3, 16, 16)
    return host(name), inputs(name)


def said(model, given):
    if isinstance(given, dict):
        return answer(model, given)
    with torch.no_grad():
        return model(given)


def drawn(layout, kinds, seed=1) -> Choice:
    """About half of everything, never nothing."""
    generator = torch.Generator().manual_seed(seed)

    def marks(count):
        kept = torch.rand(count, generator=generator) < 0.6
        first, second = torch.randperm(count, generator=generator)[:2].tolist()
        kept[first], kept[second] = True, False
        return kept

    layers = {path: marks(len(stack.blocks)) for path, stack in layout.stacks.items()}
    if hasattr(layout.model, "encoder") and hasattr(layout.model, "decoder"):
        layers = {path: torch.arange(len(kept)) < 1 for path, kept in layers.items()}  # T5: the first has the positions
    return Choice(
        {one.path: marks(one.groups) for one in layout.layers if one.groups > 1} if "heads" in kinds else {},
        {one.path: marks(one.hidden) for one in layout.layers if one.hidden} if "units" in kinds else {},
        layers if "layers" in kinds else {},
        {path: marks(stack.width) for path, stack in layout.stacks.items()} if "width" in kinds else {},
    )


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], KINDS], ids="+".join)
@pytest.mark.parametrize("name", [*HOSTS, "ours"])
def test_slices_compute_what_masks_do(name, kinds):
    kinds = tuple(kind for kind in kinds if kind != "width" or name not in NO_WIDTH)
    model, given = made(name)
    layout = read_layout(model)
    choice = drawn(layout, kinds)
    before = said(model, given)
    with masked(layout, choice):
        expected = said(model, given)
    assert torch.equal(said(model, given), before), "masks leave something behind"
    costs = read_costs(layout, lambda: said(model, given), 2)
    wanted = costs.parameters(choice)
    sliced = carry_out(layout, choice, {"parameters": 1, "macs": 1})
    found = said(sliced, given)
    if found.shape != expected.shape:  # an encoder's states are as wide as its stream
        expected = expected[..., next(iter(choice.width.values()))]
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, scale)
    if any((choice.heads, choice.units, choice.layers, choice.width)):
        assert not torch.allclose(found.mean(), before.mean(), atol=1e-7) or found.shape != before.shape
    assert sum(p.numel() for p in sliced.parameters()) == wanted


@pytest.mark.parametrize("name", ["ours", "llama", "minilm"])
def test_multiply_adds_are_those_that_torch_counts(name):
    model, given = made(name)
    layout = read_layout(model)
    costs = read_costs(layout, lambda: said(model, given), 2)
    choice = drawn(layout, ("heads", "units", "layers"))
    wanted = costs.macs(choice)
    sliced = carry_out(layout, choice, {"parameters": 1, "macs": 1})
    again = read_costs(read_layout(sliced), lambda: said(sliced, given), 2)
    assert again.macs() == wanted < costs.macs()


def test_a_second_cut_keeps_the_notes_of_the_first():
    model, given = made("llama")
    layout = read_layout(model)
    marks = {one.path: torch.tensor([True, False]) for one in layout.layers}
    first = carry_out(layout, Choice(heads=marks), {"parameters": 7, "macs": 9})
    layout = read_layout(first)
    assert [one.groups for one in layout.layers] == [1, 1]
    with masked(layout, Choice(layers={"model.layers": torch.tensor([False, True])})):
        expected = said(first, given)
    second = carry_out(
        layout, Choice(layers={"model.layers": torch.tensor([False, True])}), {"parameters": 1, "macs": 1}
    )
    assert torch.allclose(said(second, given), expected, atol=1e-5)
    noted = second.pruned_shape
    assert noted.dense == {"parameters": 7, "macs": 9}
    assert noted.configs_said["model"]["num_hidden_layers"] == 1 == second.config.num_hidden_layers
    assert all(path.startswith("model.layers.0.") for path in noted.modules_said)
    twin = copy.deepcopy(second)
    assert torch.equal(said(twin, given), said(second, given))


def test_a_block_that_others_rely_on_stays():
    layout = read_layout(host("t5-gated"))
    with pytest.raises(InputError, match="block 1 of .* is of another kind than block 0"):
        carry_out(layout, Choice(layers={"encoder.block": torch.tensor([False, True])}), {})
