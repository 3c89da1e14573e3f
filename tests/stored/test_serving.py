"""Forms without a kernel are decoded once to be served: the same numbers, memory counted, nothing kept afterwards."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lessen.measure.memory import resident_bytes
from lessen.stored.linears.billm import BiLLMLinear
from lessen.stored.linears.decoded import DecodedLinear
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.rotated import RotatedInput
from lessen.stored.serving import release, serve, served, storage_only


def quantised(activations="float"):
    generator = torch.Generator().manual_seed(1)
    grid = GroupGrid(
        4, 16, torch.rand(24, 3, generator=generator).half(), torch.randn(24, 3, generator=generator).half()
    )
    codes = torch.randint(0, 16, (24, 48), generator=generator, dtype=torch.uint8)
    return GroupQuantizedLinear.from_codes(nn.Linear(48, 24), grid, codes, activations)


def binary():
    generator = torch.Generator().manual_seed(2)
    made = BiLLMLinear(48, 24, 48, True, 0)
    made.signs.copy_(torch.randint(0, 256, made.signs.shape, generator=generator))
    made.levels.copy_(torch.rand(made.levels.shape, generator=generator))
    return made


class Counted(DecodedLinear):
    """A layer of ones that counts how often it is decoded."""

    kind = "counted"

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features, self.times = 8, 4, 0
        self.register_buffer("factor", torch.ones(1))
        self.bias = None

    def decoded(self, part):
        self.times += 1
        return torch.ones(part.stop - part.start, 8) * self.factor


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_served_model_gives_what_it_gave(kind):
    model = nn.Sequential(RotatedInput.around(nn.Linear(48, 24), torch.ones(48, dtype=torch.int8)), nn.Linear(24, 48))
    model[0].layer = binary()
    model = model.to(kind)
    inputs = torch.randn(5, 48).to(kind)
    expected = model(inputs)
    assert storage_only(model) == serve(model) == ["0.layer"]
    assert torch.allclose(model(inputs), expected, rtol=1e-5 if kind == torch.float32 else 2e-2, atol=1e-5)
    wide = model[0].layer(inputs.double()).detach()  # another type than it is held in
    release(model)
    assert torch.allclose(model[0].layer(inputs.double()), wide, rtol=1e-6)


def test_weights_are_decoded_once_and_again_where_they_changed():
    model = nn.Sequential(Counted())
    held = resident_bytes(model)
    with served(model), torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(torch.ones(2, 8)), torch.full((2, 4), 8.0))
        assert model[0].times == 1
        assert resident_bytes(model) == held + 4 * 8 * 4
        model[0].factor.fill_(2)
        assert torch.equal(model(torch.ones(2, 8)), torch.full((2, 4), 16.0))
    assert resident_bytes(model) == held
    model(torch.ones(2, 8))
    model(torch.ones(2, 8))
    assert model[0].times == 4


def test_what_is_held_is_no_part_of_copies_and_passes_gradients():
    layer = binary()
    with torch.inference_mode():
        serve(layer)
        layer(torch.ones(1, 48))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.packed_bytes() == 0
        assert torch.equal(twin(torch.ones(1, 48)), layer(torch.ones(1, 48)))
    inputs = torch.ones(1, 48, requires_grad=True)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad[0], layer.dequantise().sum(0), atol=1e-4)
    assert set(layer.state_dict()) == set(binary().state_dict())
